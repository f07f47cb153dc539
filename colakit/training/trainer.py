"""A run's training: steps become progress, metrics.jsonl, evaluations and resumable states."""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from colakit.api.session import Session
from colakit.config.settings import LoopSettings, Settings
from colakit.errors import EXIT_FAILED, ColakitError, first_line
from colakit.models.gpt.model import Transformer, num_frozen_blocks
from colakit.runtime.distributed import Processes
from colakit.runtime.seeding import restore_rng, rng_state, seed_everything
from colakit.runtime.signals import StopRequest, stop_requests
from colakit.storage.checkpoints import Checkpoint
from colakit.storage.run_folder import RunFolder
from colakit.training.cuda_graphs import StepGraphs
from colakit.training.loop import SPOILT_HINT, StepBatch, StepReport, train
from colakit.training.objectives import Objective
from colakit.training.schedule import warmup_then
from colakit.utils.console import ProgressTask

BEFORE = {"pretrain.start_weight": 0.0, "discriminate.start_weight": 0.0, "finetune.frozen_cache_mib": 1024}
"""Settings that came later than the first runs, with what those did before; None goes without saying."""


@dataclass
class Lesson:
    """What is trained, by what, and for how long.

    Attributes:
        model: in place, on the device it trains on.
        objective: its loss.
        optimizer: of its trainable parameters.
        training: rate, batch, schedule and how often things are done.
        max_steps: optimizer steps in all.
        identity: plain data that must agree between a run and its resumption.
        widest: most tokens of a batch, where a step can be recorded: it never waits for the device, and its
            loss is one function from the first to the last. None where it cannot.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    training: LoopSettings
    max_steps: int
    identity: Mapping[str, Any]
    widest: int | None = None


class Trainer(ABC):
    """One run's training, step by step: the consumer of `engine.training.train`.

    What is particular to classifiers or to language models (batches, figures, evaluation) is a subclass's.

    Args:
        session: the command.
        lesson: what is trained.
        run: where metrics and states go.
        group: the processes that train together.
    """

    def __init__(self, session: Session, lesson: Lesson, run: RunFolder, group: Processes) -> None:
        self.session, self.lesson, self.run, self.group = session, lesson, run, group
        self.training = lesson.training
        is_gpt = any(isinstance(module, Transformer) for module in lesson.model.modules())
        self.compute = session.training_compute if is_gpt else session.compute  # kernels are GPT's
        if lesson.widest is not None and group.world_size == 1:
            self.compute = self.compute.with_graphs(session.settings.cuda_graphs)
        self.graphs: StepGraphs | None = None
        self.graphs_failed = False  # and are not tried again, so that a resumed run ends with the same bytes
        self.model, self.optimizer = lesson.model, lesson.optimizer
        self.max_steps = lesson.max_steps
        self.step = 0
        self.saved_step: int | None = None
        self.max_micro_batch_size: int | None = None  # micro-batch, since memory ran out
        self.seconds = 0.0  # of training, evaluations included; not those that a kill has lost
        self.began = 0.0  # by the monotonic clock; sessions before this one are taken off
        self.counted = 0
        seed_everything(session.settings.seed, group.rank)

    # -- what a subclass brings

    @abstractmethod
    def batches(self) -> Iterator[StepBatch]:
        """Yield what the steps after `self.step` learn from."""

    @abstractmethod
    def observe(self, report: StepReport) -> str:
        """Take note of a step; return a line on how training goes, for the progress bar."""

    @abstractmethod
    def is_evaluation_due(self) -> bool:
        """Whether this step ends with an evaluation (the last one always does)."""

    @abstractmethod
    def evaluate(self) -> str:
        """Measure on held-out data, log it, and return a line on it."""

    @abstractmethod
    def progress_state(self) -> dict[str, Any]:
        """Return where the run stands, besides `step`: plain data and tensors that all processes share."""

    @abstractmethod
    def process_state(self) -> Any:
        """Return what only this process knows."""

    @abstractmethod
    def restore_progress(self, progress: dict[str, Any], process: Any) -> None:
        """Go back to what the two methods above returned."""

    def require_same_end(self, progress: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to add
        """Raise `ColakitError` where a finished run is asked to go further than it went."""

    def is_stale(self) -> bool:
        """Whether to stop early."""
        return False

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Compute what all steps need, in the training's time."""

    # -- the loop's consumer

    def train(self) -> None:
        """Train until the last step, an early stop or a signal."""
        self.began = time.monotonic() - self.seconds
        self.prepare()
        self.model.train()
        self.graphs = self._step_graphs()
        reports = train(
            self.group.replicate(self.model, self.compute),
            self.batches(),
            self.lesson.objective,
            self.optimizer,
            lr_at=self.lr_at(self.max_steps),
            compute=self.compute,
            group=self.group,
            max_grad_norm=self.training.max_grad_norm,
            start_step=self.step,
            max_micro_batch_size=self.max_micro_batch_size,
            graphs=self.graphs,
        )
        what = f"{self.session.command}, seed {self.session.settings.seed}"
        with stop_requests() as stop, self.session.reporter.progress(what, self.max_steps, self.step) as bar:
            while not self.is_stale() and (report := next(reports, None)) is not None:
                self._after_step(report, bar)
                self._leave_if_asked(stop)

    def _step_graphs(self) -> StepGraphs | None:
        if not self.compute.graphs or self.lesson.widest is None or self.graphs_failed:
            return None
        return StepGraphs(
            [parameter for group in self.optimizer.param_groups for parameter in group["params"]],
            self.compute.device,
            batch_size=self.training.batch_size,
            widest=self.lesson.widest,
        )

    def lr_at(self, max_steps: int) -> Callable[[int], float]:
        """Return the multiplier of the peak rate at each step of a run of `max_steps`."""
        return warmup_then(
            self.training.schedule,
            warmup_steps=round(self.training.warmup * max_steps),
            max_steps=max_steps,
            decay=self.training.decay,
        )

    def _after_step(self, report: StepReport, bar: ProgressTask) -> None:
        self.step = report.step
        self.counted += report.count
        if report.max_micro_batch_size != self.max_micro_batch_size:
            self.max_micro_batch_size = report.max_micro_batch_size
            self.session.reporter.warn(
                f"step {report.step}: memory ran out; going on with micro-batches of at most "
                f"{report.max_micro_batch_size}, and the same batch"
            )
        if self.graphs is not None and self.graphs.failure is not None:
            self.session.reporter.warn(
                f"step {report.step}: going on without CUDA graphs ({self.graphs.failure})"
            )
            self.graphs, self.graphs_failed = None, True
        self.seconds = time.monotonic() - self.began
        line = self.observe(report)
        if report.step % self.training.log_every == 0:
            self.log("step", loss=report.loss, lr=report.lr, grad_norm=report.grad_norm)
        bar.advance(note=line)
        evaluated = report.step == self.max_steps or self.is_evaluation_due()
        if evaluated:
            bar.advance(0, note=self.evaluate())
            self.model.train()
            self.seconds = time.monotonic() - self.began
        every = self.training.save_every_steps
        if evaluated or (every and report.step % every == 0):
            self._save()

    def log(self, event: str, **figures: Any) -> None:
        """Add a line to metrics.jsonl."""
        if self.group.is_main:
            self.run.append_metrics({"event": event, "step": self.step, **figures})

    @property
    def counted_per_second(self) -> float:
        """Training speed, evaluations included, in what `StepReport.count` counts, a second."""
        return self.counted / max(self.seconds, 1e-9)

    # -- stopping and resuming

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        gathered = self.group.all_gather([rng_state(self.compute.device), self.process_state()])
        self.saved_step = self.step
        if not self.group.is_main:
            return
        tensors = self.trainable()
        self._require_finite(tensors)
        self.run.sync_metrics()
        state = {
            "identity": self._identity(),
            "step": self.step,
            "progress": self.progress_state(),
            "tensors": tensors,
            "optimizer": self.optimizer.state_dict(),
            "per_process": gathered,
            "metrics_bytes": self.run.metrics_bytes(),
            "max_micro_batch_size": self.max_micro_batch_size,
            "graphs_failed": self.graphs_failed,
        }
        self.run.checkpoints.save(state, {"seconds": self.seconds, "counted": self.counted})

    def _require_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Never let weights that are spoilt take the place of the last good ones."""
        if spoilt := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ColakitError(
                f"step {self.step}: {spoilt[0]} is not finite any more",
                hint=SPOILT_HINT,
                exit_code=EXIT_FAILED,
            )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a saved state, refusing one that another job left."""
        state = checkpoint.state
        self.require_identity(state["identity"])
        if len(state["per_process"]) != self.group.world_size:
            raise ColakitError(
                f"{self.run.path}: was written by {len(state['per_process'])} processes; "
                f"there are {self.group.world_size} now",
                hint="Resume with as many processes as it began with.",
            )
        rng, process = state["per_process"][self.group.rank]
        self.step = self.saved_step = state["step"]
        self.max_micro_batch_size = state["max_micro_batch_size"]
        self.graphs_failed = state["graphs_failed"]
        try:
            self.load_trainable(state["tensors"])
            self.restore_progress(state["progress"], process)
            self.optimizer.load_state_dict(state["optimizer"])
            restore_rng(rng, self.compute.device)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ColakitError(
                f"{checkpoint.path}: is not what this command writes ({first_line(error)})",
                hint="Start the run anew in another folder.",
            ) from error
        if self.group.is_main:
            self.run.truncate_metrics(state["metrics_bytes"])
        self.seconds = checkpoint.notes.get("seconds", 0.0)
        self.counted = int(checkpoint.notes.get("counted", 0))
        self.session.reporter.say(f"resuming {self.run.path} after step {self.step} of {self.max_steps}")

    def _identity(self) -> dict[str, Any]:
        seed = self.session.settings.seed
        frozen = num_frozen_blocks(self.lesson.model)  # older versions dropped in them, too
        own = {**self.lesson.identity, **({"frozen_blocks": frozen} if frozen else {})}
        return {"seed": seed, **own, "compute": self.compute.arithmetic}

    def require_identity(self, saved: Mapping[str, Any]) -> None:
        """Raise `ColakitError`, listing what differs, unless this run was started as the saved one was.

        A run that was begun without kernels or graphs goes on without, unless they are asked for.
        """
        plain = self.session.compute
        if self.session.settings.cpu_kernels != "always" and saved.get("compute") == plain.arithmetic:
            self.compute = plain
        if differing := differences({**BEFORE, **saved}, {**BEFORE, **self._identity()}):
            if self.compute.kernels is None and "kernels" in str(saved.get("compute")):
                hint = "It began with kernels, for which a C compiler and --set cpu_kernels=auto are needed."
            elif not self.compute.graphs and "graphs" in str(saved.get("compute")):
                hint = "It began with CUDA graphs, for which a GPU and --set cuda_graphs=auto are needed."
            else:
                hint = f"Resume with its own settings: --config {self.run.settings}"
                if saved.get("compute") != self.compute.arithmetic:
                    hint += f"; compute follows --device and --precision, now {self.compute}"
            raise ColakitError(f"{self.run.path}: the run was started differently: {differing}", hint=hint)

    def trainable(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the parameters that train."""
        return {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def load_trainable(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved values into the parameters that train, which must be the same ones."""
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        shapes, saved = ({n: tuple(t.shape) for n, t in named.items()} for named in (parameters, tensors))
        if differing := [n for n in sorted({*shapes, *saved}) if shapes.get(n) != saved.get(n)]:
            raise ColakitError(
                f"{self.run.path}: {', '.join(differing[:3])}: saved {saved.get(differing[0])}, "
                f"wanted {shapes.get(differing[0])}",
                hint="The checkpoint is another model's.",
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[name])

    def _leave_if_asked(self, stop: StopRequest) -> None:
        if self.group.world_size > 1:  # all leave after the same step, or none would finish the next
            if self.step % self.training.log_every:
                return
            stop.signal = int(self.group.max(stop.signal or 0)) or None
        if stop.signal is None:
            return
        self._save()
        raise ColakitError(
            f"stopped after step {self.step} of {self.max_steps}; {self.run.describe_checkpoint()}",
            hint=resume_hint(self.session.command, self.run),
            exit_code=stop.exit_code,
        )


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two mappings, for people; empty where nothing does."""
    differing = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    return "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in differing)


def resume_hint(command: str, run: RunFolder) -> str:
    """Return the hint that a run ends with which has not reached its end."""
    resume = "--resume" if run.checkpoints.paths() else "--resume auto"
    return f"Continue: colakit {command} {resume} --out {shlex.quote(str(run.path))}"


def settings_identity(settings: Settings, sections: tuple[str, ...], free: set[str]) -> dict[str, Any]:
    """Return the settings that a run's weights depend on: those of `sections` except the keys in `free`."""
    dumped = settings.model_dump(mode="json")
    return {
        f"{section}.{key}": value
        for section in sections
        for key, value in dumped[section].items()
        if key not in free
    }
