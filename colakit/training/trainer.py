"""Runs a `TrainJob`: progress bar, metrics.jsonl, evaluation, checkpoints, resuming, stopping."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from colakit.data.batches import Batch
from colakit.errors import EXIT_FAILED, ColakitError, first_line
from colakit.models.gpt.model import num_frozen_blocks
from colakit.runtime.device import peak_memory_mib
from colakit.runtime.seeding import restore_rng, rng_state, seed_everything
from colakit.runtime.signals import StopRequest, stop_requests
from colakit.storage.checkpoints import Checkpoint
from colakit.storage.run_folder import RunFolder
from colakit.training.cuda_graphs import StepGraphs
from colakit.training.estimate import CACHING, EVALUATING, TRAINING, plan_training
from colakit.training.job import TrainJob, differences
from colakit.training.loop import NOT_FINITE_HINT, StepBatch, StepReport, train
from colakit.training.run import TrainingRun
from colakit.training.schedule import warmup_then
from colakit.training.tracking import Tracker, open_tracker
from colakit.utils.console import ProgressTask
from colakit.utils.plan import Plan


@dataclass
class Progress:
    """State of a run besides weights and optimizer: plain data and tensors, equal in all processes.

    Attributes:
        max_steps: planned optimizer steps.
        loss_sum, count: of the training loss since the last evaluation; `count` as in `StepBatch`.
        best: validation metrics of the best evaluation, with its step and epoch.
        best_tensors: trainable tensors of that evaluation, on the CPU.
        stale: evaluations since the best one.
        ema: EMA of the weights on the CPU, if enabled.
    """

    max_steps: int
    loss_sum: float = 0.0
    count: int = 0
    best: dict[str, Any] | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)


class Trainer(ABC):
    """Trains a job's model in a run folder; subclasses define batches, evaluation and result."""

    folder: RunFolder
    steps_per_epoch: int

    def __init__(self, job: TrainJob, run: TrainingRun) -> None:
        self.job, self.run = job, run
        self.group, self.reporter = run.group, run.reporter
        self.model, self.optimizer, self.max_steps = job.model, job.optimizer, job.max_steps
        self.compute = job.compute if run.group.world_size == 1 else replace(job.compute, graphs=False)
        self.progress = Progress(self.max_steps)
        self.step = 0
        self.saved_step: int | None = None
        self.max_micro_batch_size: int | None = None  # set after running out of memory
        self.graphs: StepGraphs | None = None
        self.graphs_failed = False  # stays so in a resumed run, which must end with the same bytes
        self.peak_memory_mib = 0  # up to the last checkpoint, of all processes of the run
        self.seconds = 0.0  # of training and evaluation; time lost to a kill is not counted
        self.start_time = 0.0  # monotonic clock, minus the seconds of earlier sessions
        self.counted = 0  # terms of the loss
        self.tracker: Tracker | None = None
        seed_everything(job.seed, run.group.rank)

    # -- defined by subclasses

    @abstractmethod
    def batches(self) -> Iterator[StepBatch]:
        """Yield the input of the steps after `self.step`."""

    @abstractmethod
    def observe(self, report: StepReport) -> str:
        """Accumulate metrics of a step; return the text after the loss in the progress bar."""

    @abstractmethod
    def is_evaluation_due(self) -> bool:
        """Return whether this step ends with an evaluation (the last step always does)."""

    @abstractmethod
    def evaluate(self) -> str:
        """Evaluate on validation data, log the metrics, and return a line of text."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Write and print the result of the finished training (main process only); return the summary."""

    @abstractmethod
    def evaluated_sentences(self) -> tuple[int, int]:
        """Return how many sentences (or windows) are evaluated during training, and how many at its end."""

    @abstractmethod
    def seconds_per_evaluated_sentence(self, sample: int) -> float:
        """Measure the evaluation of up to `sample` sentences (or windows)."""

    def frozen_sentences(self) -> int:
        """Return the number of sentences for which `prepare` computes the output of frozen blocks."""
        return 0

    def with_states(self, batch: Batch) -> Batch:
        """Return the batch with the output of the frozen blocks, as after `prepare`."""
        return batch

    def progress_state(self) -> dict[str, Any]:
        """Return `progress` as plain data and tensors."""
        return vars(self.progress)

    def process_state(self) -> Any:
        """Return the state that differs between processes."""
        return None

    def restore_progress(self, progress: dict[str, Any], process: Any) -> None:
        """Restore what `progress_state` and `process_state` returned."""
        self.progress = Progress(**{**progress, "max_steps": self.max_steps})

    def check_length(self, planned: int, *, is_finished: bool) -> None:  # noqa: B027 - optional
        """Raise `ColakitError` if a run that was planned with `planned` steps must not continue."""

    def is_stale(self) -> bool:
        """Return whether to stop early."""
        return False

    def prepare(self) -> None:  # noqa: B027 - optional
        """Compute what all steps need; counted as training time."""

    # -- training

    def train(self) -> dict[str, Any]:
        """Train to the last step, an early stop or a signal; return the summary.

        A resumed run continues from its last checkpoint. A finished one returns its summary.
        """
        for line in self.job.lines:
            self.reporter.say(line)
        self.folder = self.run.open()
        if self.run.resuming:
            checkpoint = self.run.checkpoint()
            if self.group.broadcast(self.folder.summary.is_file()):
                return self._finished_summary(checkpoint)
            assert checkpoint is not None, "a run without a summary has a checkpoint"
            self.restore(checkpoint)
        elif self.group.is_main:
            self.folder.create(self.job.settings_yaml, self.compute, self.job.origins)
        self.reporter.say(f"compute: {self.compute}")
        if self.group.is_main and self.job.track:
            parameters = {"command": self.job.command, "seed": self.job.seed, **self.job.identity}
            self.tracker = open_tracker(self.job.track, self.folder, self.step, parameters, self.reporter)
            self.run.locks.callback(self.tracker.close)
        self.group.barrier()
        if self.run.plan is None:
            self.run.plan = Plan([] if self.reporter.quiet else plan_training(self), self.reporter)
            self.run.plan.show(self.reporter.say)
        self.start_time = time.monotonic() - self.seconds
        with self.run.plan.stage(CACHING):
            self.prepare()
        self.model.train()
        self.graphs = self._step_graphs()
        reports = train(
            self.group.replicate(self.model, self.compute),
            self.batches(),
            self.job.objective,
            self.optimizer,
            lr_at=self.lr_at(self.max_steps),
            compute=self.compute,
            group=self.group,
            max_grad_norm=self.job.settings.max_grad_norm,
            start_step=self.step,
            max_micro_batch_size=self.max_micro_batch_size,
            graphs=self.graphs,
        )
        with (
            self.run.plan.stage(TRAINING),
            stop_requests(on_signal=self._say_stopping) as stop,
            self.reporter.progress(self.run.title, self.max_steps, self.step) as bar,
        ):
            while not self.is_stale() and (report := next(reports, None)) is not None:
                self._after_step(report, bar)
                self._stop_if_requested(stop)
        with self.run.plan.stage(EVALUATING), stop_requests(at_once=True):
            summary = self.finish() if self.group.is_main else {}
        return {**summary, "run": str(self.folder.path)}

    def _finished_summary(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        if checkpoint is not None:
            self.require_identity(checkpoint.state["identity"])
            self.check_length(checkpoint.state["progress"]["max_steps"], is_finished=True)
        return self.run.finished_summary()

    def _step_graphs(self) -> StepGraphs | None:
        if not self.compute.graphs or self.job.graph_width is None or self.graphs_failed:
            return None
        return StepGraphs(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]],
            self.compute.device,
            batch_size=self.job.settings.batch_size,
            widest=self.job.graph_width,
        )

    def lr_at(self, max_steps: int) -> Callable[[int], float]:
        """Return the learning rate schedule of `max_steps` steps, as a multiplier of the peak rate."""
        settings = self.job.settings
        return warmup_then(
            settings.schedule,
            warmup_steps=round(settings.warmup * max_steps),
            max_steps=max_steps,
            decay=settings.decay,
        )

    def _after_step(self, report: StepReport, bar: ProgressTask) -> None:
        self.step = report.step
        self.counted += report.count
        if report.max_micro_batch_size != self.max_micro_batch_size:
            self.max_micro_batch_size = report.max_micro_batch_size
            self.reporter.warn(
                f"step {report.step}: out of memory; micro-batches now have at most "
                f"{report.max_micro_batch_size} sentences (same batch size)"
            )
        if self.graphs is not None and self.graphs.failure is not None:
            self.reporter.warn(f"step {report.step}: continuing without CUDA graphs ({self.graphs.failure})")
            self.graphs, self.graphs_failed = None, True
        self.seconds = time.monotonic() - self.start_time
        self.progress.loss_sum += report.loss * report.count
        self.progress.count += report.count
        text = f"loss {self.mean_loss:.3f}{self.observe(report)}"  # what a narrow terminal shows comes first
        if report.step % self.job.settings.log_every == 0:
            self.log("step", loss=report.loss, lr=report.lr, grad_norm=report.grad_norm)
        bar.advance(note=f"{text}, epoch {report.epoch + 1}")
        is_evaluated = report.step == self.max_steps or self.is_evaluation_due()
        if is_evaluated:
            bar.advance(0, note=self.evaluate())
            self.progress.loss_sum, self.progress.count = 0.0, 0
            self.model.train()
            self.seconds = time.monotonic() - self.start_time
        every = self.job.settings.save_every_steps
        if is_evaluated or (every and report.step % every == 0):
            self._save()

    def log(self, event: str, **values: Any) -> None:
        """Append a record to metrics.jsonl."""
        if not self.group.is_main:
            return
        record = {"event": event, "step": self.step, **values}
        self.folder.append_metrics(record)
        if self.tracker is not None:
            self.tracker.log(record)

    @property
    def epoch(self) -> float:
        """Epochs so far."""
        return self.step / self.steps_per_epoch

    @property
    def mean_loss(self) -> float:
        """Mean training loss since the last evaluation."""
        return self.progress.loss_sum / self.progress.count

    def keep_best(self, metrics: dict[str, Any], score: Callable[[Mapping[str, Any]], Any]) -> None:
        """Keep metrics and weights of an evaluation if its score is the highest so far."""
        progress = self.progress
        progress.stale += 1
        if progress.best is None or score(metrics) > score(progress.best):
            progress.best = {**metrics, "step": self.step, "epoch": self.epoch}
            progress.best_tensors = self.trainable()
            progress.stale = 0

    def load_best(self) -> dict[str, Any]:
        """Load the weights of the best evaluation and return its metrics."""
        assert self.progress.best is not None, "the last step ends with an evaluation"
        self.load_trainable(self.progress.best_tensors)
        return self.progress.best

    def write_summary(self, unit: str, **values: Any) -> dict[str, Any]:
        """Write and return the summary; its presence means that the run is finished.

        Args:
            unit: of the terms of the loss, for the throughput (evaluation included).
        """
        summary = {
            "command": self.job.command,
            "seed": self.job.seed,
            **values,
            "steps": self.step,
            "max_steps": self.max_steps,
            unit: self.counted,
            "seconds": round(self.seconds, 2),
            f"{unit}_per_second": round(self.counted / max(self.seconds, 1e-9), 1),
            "compute": str(self.compute),
            "peak_memory_mib": self.peak_memory_mib,
            "stages": self.run.plan.as_dict() if self.run.plan else {},
            **self.job.summary,
        }
        self.folder.write_summary(summary)
        return summary

    # -- checkpoints

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        per_process = self.group.all_gather([rng_state(self.compute.device), self.process_state()])
        self.saved_step = self.step
        if not self.group.is_main:
            return
        tensors = self.trainable()
        if not_finite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ColakitError(  # the last checkpoint with finite weights must not be replaced
                f"step {self.step}: {not_finite[0]} is not finite",
                hint=NOT_FINITE_HINT,
                exit_code=EXIT_FAILED,
            )
        self.folder.sync_metrics()
        state = {
            "identity": self._identity(),
            "step": self.step,
            "progress": self.progress_state(),
            "tensors": tensors,
            "optimizer": self.optimizer.state_dict(),
            "per_process": per_process,
            "metrics_bytes": self.folder.metrics_bytes(),
            "max_micro_batch_size": self.max_micro_batch_size,
            "graphs_failed": self.graphs_failed,
        }
        self.peak_memory_mib = max(self.peak_memory_mib, peak_memory_mib(self.compute.device))
        notes = {"seconds": self.seconds, "counted": self.counted, "peak_memory_mib": self.peak_memory_mib}
        self.folder.checkpoints.save(state, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint.

        Raises:
            ColakitError: if another job or another number of processes wrote it.
        """
        state = checkpoint.state
        self.require_identity(state["identity"])
        if len(state["per_process"]) != self.group.world_size:
            raise ColakitError(
                f"{self.folder.path}: was written by {len(state['per_process'])} processes "
                f"(got {self.group.world_size})",
                hint="Resume with the same number of processes.",
            )
        rng, process = state["per_process"][self.group.rank]
        self.step = self.saved_step = state["step"]
        self.max_micro_batch_size, self.graphs_failed = state["max_micro_batch_size"], state["graphs_failed"]
        try:
            self.check_length(state["progress"]["max_steps"], is_finished=False)
            self.load_trainable(state["tensors"])
            self.restore_progress(state["progress"], process)
            self.optimizer.load_state_dict(state["optimizer"])
            restore_rng(rng, self.compute.device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ColakitError(
                f"{checkpoint.path}: not a checkpoint of this command ({first_line(error)})",
                hint="Start a new run in another folder.",
            ) from error
        if self.group.is_main:
            self.folder.truncate_metrics(state["metrics_bytes"])
            self.folder.clean_up()
            self.folder.checkpoints.prune(checkpoint.path)  # a killed process may have left a third one
        self.seconds = checkpoint.notes.get("seconds", 0.0)
        self.counted = int(checkpoint.notes.get("counted", 0))
        self.peak_memory_mib = int(checkpoint.notes.get("peak_memory_mib", 0))
        self.reporter.say(f"resuming {self.folder.path} after step {self.step} of {self.max_steps}")

    def _identity(self) -> dict[str, Any]:
        frozen = num_frozen_blocks(self.model)
        compute = self.compute.arithmetic
        return {"seed": self.job.seed, **self.job.identity, "frozen_blocks": frozen, "compute": compute}

    def require_identity(self, saved: Mapping[str, Any]) -> None:
        """Raise `ColakitError`, listing the differences, unless the saved run was started like this one.

        A run that started without kernels or CUDA graphs continues without them unless they are required.
        """
        plain = self.job.compute.plain()
        if self.job.cpu_kernels != "always" and saved.get("compute") == plain.arithmetic:
            self.compute = plain
        if not (differing := differences(saved, self._identity())):
            return
        if self.compute.kernels is None and "kernels" in str(saved.get("compute")):
            hint = "The run started with CPU kernels: install a C compiler and use --set cpu_kernels=auto."
        elif not self.compute.graphs and "graphs" in str(saved.get("compute")):
            hint = "The run started with CUDA graphs: use a GPU and --set cuda_graphs=auto."
        else:
            hint = f"Resume with its own settings: --config {self.folder.settings}"
            if saved.get("compute") != self.compute.arithmetic:
                hint += f"; compute follows --device and --precision (now {self.compute})"
        raise ColakitError(f"{self.folder.path}: the run was started differently: {differing}", hint=hint)

    def trainable(self) -> dict[str, Tensor]:
        """Return CPU copies of the trainable parameters."""
        return {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def load_trainable(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy saved values into the trainable parameters.

        Raises:
            ColakitError: if names or shapes differ.
        """
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        shapes, saved = ({n: tuple(t.shape) for n, t in named.items()} for named in (parameters, tensors))
        if differing := [n for n in sorted({*shapes, *saved}) if shapes.get(n) != saved.get(n)]:
            raise ColakitError(
                f"{self.folder.path}: {', '.join(differing[:3])}: saved shape {saved.get(differing[0])}, "
                f"expected {shapes.get(differing[0])}",
                hint="The checkpoint belongs to another model.",
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[name])

    def _say_stopping(self) -> None:
        with suppress(RuntimeError):  # the signal came while stderr was written
            self.reporter.say("stopping after this step; a checkpoint is saved (Ctrl-C again: stop at once)")

    def _stop_if_requested(self, stop: StopRequest) -> None:
        if self.group.world_size > 1:  # all processes must stop after the same step
            if self.step % self.job.settings.log_every:
                return
            stop.signal = int(self.group.max(stop.signal or 0)) or None
        if stop.signal is None:
            return
        self._save()
        raise ColakitError(
            f"after step {self.step} of {self.max_steps}; {self.folder.describe_checkpoint()}",
            hint=self.run.how_to_continue(),
            exit_code=stop.exit_code,
        )
