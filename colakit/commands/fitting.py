"""A run's training: steps become progress, metrics.jsonl, evaluations and resumable states."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from colakit.commands.job import Job
from colakit.console import ProgressTask, Reporter
from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.engine.distributed import Processes
from colakit.engine.inference import compute_logits, decide
from colakit.engine.metrics import Metrics, accuracy_of_confusion, mcc_of_confusion, measure
from colakit.engine.randomness import restore_rng, rng_state, seed_everything
from colakit.engine.runs import RunFolder
from colakit.engine.schedule import warmup_then
from colakit.engine.stopping import StopRequest, stop_requests
from colakit.engine.training import StepBatch, StepReport, train
from colakit.errors import ColakitError
from colakit.models.lora import parameter_groups

FREE_TO_CHANGE = {"log_every", "save_every_steps", "track_dev", "teacher"}
"""Settings that may differ on resume: they leave the weights alone, or have a fingerprint (teacher)."""


@dataclass
class Progress:
    """Where a run stands; plain data and tensors, so that it can be saved and restored.

    Attributes:
        step: optimizer steps taken.
        loss_sum, count: of the sentences since the last evaluation.
        confusion: (C, C) counts of this process's training predictions since the last evaluation.
        best: held-out record of the best evaluation, with its step.
        best_tensors: the trainable tensors of that moment, on the CPU.
        stale: evaluations since the best one.
    """

    confusion: Tensor
    step: int = 0
    loss_sum: float = 0.0
    count: int = 0
    best: dict[str, Any] | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0


class Fit:
    """One run's training, step by step: the consumer of `engine.training.train`.

    Args:
        job: what is trained.
        run: where metrics and states go.
        group: the processes that train together.
    """

    def __init__(self, job: Job, run: RunFolder, group: Processes) -> None:
        self.job, self.run, self.group = job, run, group
        self.training, self.compute = job.training, job.context.compute
        self.reporter: Reporter = job.context.reporter
        self.model: nn.Module = job.classifier.model
        self.num_labels = len(job.classifier.label_names)
        self.steps_per_epoch = -(-len(job.train) // self.training.batch_size)
        self.max_steps = self.training.epochs * self.steps_per_epoch
        self.evaluate_every = (
            self.training.evaluate_every_steps or self.training.evaluate_every_epochs * self.steps_per_epoch
        )
        groups = parameter_groups(
            self.model, lr=self.training.lr, weight_decay=self.training.weight_decay, lr_ratio=job.lr_ratio
        )
        fused = self.compute.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=self.training.lr, fused=fused)
        self.progress = Progress(torch.zeros(self.num_labels, self.num_labels, dtype=torch.long))
        self.started_at = 0
        self.seconds = 0.0
        seed_everything(job.context.settings.seed, group.rank)

    # -- the loop's consumer

    def train(self) -> None:
        """Train until the last step, an early stop or a signal; the best moment stays in `progress`."""
        warmup_steps = round(self.training.warmup * self.max_steps)
        lr_at = warmup_then(self.training.schedule, warmup_steps=warmup_steps, max_steps=self.max_steps)
        self.started_at, began = self.progress.step, time.monotonic()
        self.model.train()
        reports = train(
            self.group.replicate(self.model, self.compute),
            self._batches(),
            self.job.objective,
            self.optimizer,
            lr_at=lr_at,
            compute=self.compute,
            group=self.group,
            clip_norm=self.training.clip_norm,
            start_step=self.progress.step,
        )
        what = f"{self.job.context.command}, seed {self.job.context.settings.seed}"
        with (
            stop_requests() as stop,
            self.reporter.progress(what, self.max_steps, self.progress.step) as bar,
        ):
            while not self._is_stale() and (report := next(reports, None)) is not None:
                self._after_step(report, bar)
                self._leave_if_asked(stop)
        if self._is_stale():
            self.reporter.say(f"no better evaluation in the last {self.progress.stale}; stopped early")
        self.seconds = time.monotonic() - began

    def _batches(self) -> Iterator[StepBatch]:
        job, start = self.job, self.progress.step
        size = self.training.micro_batch_size or self.training.batch_size
        for epoch in range(start // self.steps_per_epoch, self.training.epochs):
            plan = plan_epoch(
                job.train.tokens.lengths, self.training.batch_size, job.context.settings.seed, epoch
            )
            done = max(0, start - epoch * self.steps_per_epoch)
            for position, index in enumerate(plan[done:], start=done + 1):
                share = micro_batches(
                    job.train, index, size, rank=self.group.rank, world_size=self.group.world_size
                )
                yield StepBatch(share, len(index), epoch, f"batch {position} of epoch {epoch + 1}")

    def _after_step(self, report: StepReport, bar: ProgressTask) -> None:
        progress = self.progress
        progress.step = report.step
        progress.loss_sum += report.loss * report.count
        progress.count += report.count
        for logits, labels in report.predictions:
            cells = labels * self.num_labels + logits.argmax(dim=1)
            counts = torch.bincount(cells, minlength=self.num_labels**2).cpu()
            progress.confusion += counts.view(self.num_labels, self.num_labels)
        if report.step % self.training.log_every == 0:
            self._log(
                {
                    "event": "step",
                    "step": report.step,
                    "loss": report.loss,
                    "lr": report.lr,
                    "grad_norm": report.grad_norm,
                }
            )
        is_last = report.step == self.max_steps
        evaluated = report.step % self.evaluate_every == 0 or is_last
        bar.advance(note=self._live_line(report.epoch))
        if evaluated:
            self._evaluate(bar)
        if evaluated or (
            self.training.save_every_steps and report.step % self.training.save_every_steps == 0
        ):
            self._save()

    def _live_line(self, epoch: int) -> str:
        """Training figures since the last evaluation, and the best evaluation so far."""
        progress = self.progress
        counts = progress.confusion.numpy()
        line = (
            f"epoch {epoch + 1}: loss {progress.loss_sum / progress.count:.3f}, "
            f"accuracy {100 * accuracy_of_confusion(counts):.1f} %, MCC {mcc_of_confusion(counts):.3f}"
        )
        if progress.best is None:
            return line
        best = progress.best
        return f"{line} | best held out: accuracy {100 * best['accuracy']:.1f} %, MCC {best['mcc']:.3f}"

    def _is_stale(self) -> bool:
        return self.training.patience is not None and self.progress.stale >= self.training.patience

    @property
    def examples_per_second(self) -> float:
        """Training sentences a second since the run began or was resumed, evaluations included."""
        return (self.progress.step - self.started_at) * self.training.batch_size / max(self.seconds, 1e-9)

    # -- evaluation

    def _evaluate(self, bar: ProgressTask) -> None:
        progress = self.progress
        held_out = self.group.share(asdict(self._measure(self.job.holdout)) if self.group.is_main else {})
        counts = self.group.sum(progress.confusion.to(self.compute.device)).cpu().numpy()
        epoch = progress.step / self.steps_per_epoch
        record: dict[str, Any] = {
            "event": "evaluation",
            "step": progress.step,
            "epoch": epoch,
            "train": {
                "loss": progress.loss_sum / progress.count,
                "accuracy": float(accuracy_of_confusion(counts)),
                "mcc": float(mcc_of_confusion(counts)),
            },
            "holdout": held_out,
        }
        if self.training.track_dev and self.group.is_main:
            record["dev"] = {name: asdict(self._measure(data)) for name, data in self.job.dev.items()}
        self._log(record)
        progress.stale += 1
        if progress.best is None or self._key(held_out) > self._key(progress.best):
            progress.best = {**held_out, "step": progress.step, "epoch": epoch}
            progress.best_tensors = self._trainable()
            progress.stale = 0
        progress.loss_sum, progress.count = 0.0, 0
        progress.confusion.zero_()
        bar.advance(
            0,
            note=f"epoch {epoch:.2f} held-out loss {held_out['loss']:.3f} "
            f"accuracy {100 * held_out['accuracy']:.1f} % MCC {held_out['mcc']:.3f}",
        )

    def _key(self, held_out: Mapping[str, Any]) -> tuple[float, float]:
        """What makes an evaluation better; the lower loss breaks ties."""
        if self.training.select_by == "loss":
            return -held_out["loss"], held_out["mcc"]
        return held_out[self.training.select_by], -held_out["loss"]

    def _measure(self, data: Examples) -> Metrics:
        logits = compute_logits(self.model, data.tokens, self.compute)
        return measure(logits, data.labels, decide(logits, threshold=None))

    def _trainable(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def _log(self, record: dict[str, Any]) -> None:
        if self.group.is_main:
            self.run.append_metrics(record)

    # -- stopping and resuming

    def _identity(self) -> dict[str, Any]:
        dumped = self.job.context.settings.model_dump(mode="json")
        settings = {
            f"{section}.{key}": value
            for section in self.job.sections
            for key, value in dumped[section].items()
            if key not in FREE_TO_CHANGE
        }
        compute = f"{self.compute.device.type}, {self.compute.dtype}"
        max_tokens = self.job.classifier.max_tokens
        return {
            "seed": dumped["seed"],
            **settings,
            "compute": compute,
            "max_tokens": max_tokens,
            **self.job.identity,
        }

    def _save(self) -> None:
        per_process = [rng_state(self.compute.device), self.progress.confusion]
        gathered = self.group.gather(per_process)
        if not self.group.is_main:
            return
        progress = {name: value for name, value in vars(self.progress).items() if name != "confusion"}
        self.run.save_state(
            {
                "identity": self._identity(),
                "progress": progress,
                "tensors": self._trainable(),
                "optimizer": self.optimizer.state_dict(),
                "per_process": gathered,
                "metrics_bytes": self.run.metrics_bytes(),
            }
        )

    def restore(self) -> None:
        """Go back to the saved state, refusing one that another job left."""
        state = self.run.load_state()
        self._require_identity(state["identity"])
        if len(state["per_process"]) != self.group.world_size:
            raise ColakitError(
                f"{self.run.path}: was written by {len(state['per_process'])} processes; "
                f"there are {self.group.world_size} now",
                hint="Resume with as many processes as it began with.",
            )
        rng, confusion = state["per_process"][self.group.rank]
        self.progress = Progress(confusion=confusion, **state["progress"])
        self.load_trainable(state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_rng(rng, self.compute.device)
        if self.group.is_main:
            self.run.truncate_metrics(state["metrics_bytes"])
        self.reporter.say(f"resuming {self.run.path} after step {self.progress.step} of {self.max_steps}")

    def _require_identity(self, saved: Mapping[str, Any]) -> None:
        now = self._identity()
        differing = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
        if differing:
            shown = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in differing)
            raise ColakitError(
                f"{self.run.path}: the run was started differently: {shown}",
                hint=f"Resume with its own settings: --config {self.run.settings}",
            )

    def load_trainable(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved values into the parameters that train."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(tensors[name])

    def _leave_if_asked(self, stop: StopRequest) -> None:
        if (
            self.group.world_size > 1
        ):  # all processes leave after the same step, or none would finish the next
            if self.progress.step % self.training.log_every:
                return
            stop.signal = int(self.group.max(stop.signal or 0)) or None
        if stop.signal is None:
            return
        self._save()
        raise ColakitError(
            f"stopped after step {self.progress.step} of {self.max_steps}; {self.run.state} holds everything",
            hint=f"Continue: colakit {self.job.context.command} --resume --out {self.run.path}",
            exit_code=stop.exit_code,
        )
