"""Training a language model: windows of text, and bits per byte on what was held out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.windows import Windows
from colakit.errors import ColakitError
from colakit.inference.forward import bits_per_byte
from colakit.models.gpt.model import GPT
from colakit.runtime.distributed import Processes
from colakit.storage.bases import write_base
from colakit.storage.run_folder import RunFolder
from colakit.training.averaging import StartAverage
from colakit.training.loop import StepBatch, StepReport
from colakit.training.trainer import Lesson, Trainer


class LMTrainer(Trainer):
    """Trains a language model on windows; the base in the run folder is renewed at every evaluation."""

    model: GPT

    def __init__(
        self,
        session: Session,
        lesson: Lesson,
        run: RunFolder,
        group: Processes,
        tokenizer: SentenceTokenizer,
        train: Windows,
        val: Windows,
    ) -> None:
        super().__init__(session, lesson, run, group)
        self.settings = session.settings.pretrain
        self.average = StartAverage(self.model, self.settings.start_weight)
        self.tokenizer, self.train_windows, self.val = tokenizer, train, val
        self.steps_per_epoch = max(1, len(train) // lesson.training.batch_size)
        self.loss_sum = 0.0
        self.count = 0
        if lesson.training.batch_size % group.world_size:
            raise ColakitError(
                f"pretrain.batch_size (={lesson.training.batch_size}) must be a multiple of the processes "
                f"(={group.world_size})"
            )

    def batches(self) -> Iterator[StepBatch]:
        """Yield steps; an epoch ends where no whole batch is left."""
        size = self.training.batch_size
        while self.step < self.max_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            plan = self.train_windows.plan(self.session.settings.seed, epoch)
            for position in range(done, min(self.steps_per_epoch, done + self.max_steps - self.step)):
                rows = plan[np.arange(position * size, (position + 1) * size) % len(plan)]
                share = rows[self.group.rank :: self.group.world_size]
                micro = self.training.micro_batch_size or size
                batches = [
                    self.train_windows.batch(share[i : i + micro]) for i in range(0, len(share), micro)
                ]
                count = self.train_windows.count(rows)
                yield StepBatch(batches, count, epoch, f"batch {position + 1} of epoch {epoch + 1}")

    def observe(self, report: StepReport) -> str:
        """Add up the loss."""
        self.loss_sum += report.loss * report.count
        self.count += report.count
        return f"epoch {report.epoch + 1}: loss {self.loss_sum / self.count:.3f} nats a token"

    def is_evaluation_due(self) -> bool:
        """Whether this step ends with an evaluation."""
        every = self.training.evaluate_every_steps
        return every is not None and self.step % every == 0

    def evaluate(self) -> str:
        """Measure bits per byte on a part of each held-out text, and write the base as it is now."""
        measured: dict[str, float] = {}
        if self.group.is_main:
            measured = self.write_and_measure(limit=self.settings.evaluate_windows)
        train_loss = self.loss_sum / self.count
        self.log(
            "evaluation", epoch=self.step / self.steps_per_epoch, train=train_loss, bits_per_byte=measured
        )
        self.loss_sum, self.count = 0.0, 0
        figures = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        return f"step {self.step}: held-out bits per byte: {figures}"

    def write_and_measure(self, limit: int | None) -> dict[str, float]:
        """Write model and tokenizer to `base/`, in bf16; return the model's bits per byte of held-out texts.

        Args:
            limit: windows of each text to measure, evenly spread; None measures all.
        """
        with self.average.in_place():
            write_base(self.model.transformer, self.tokenizer, self.run.base)
            return {
                name: bits_per_byte(self.model, self.val.measured(name, limit), self.compute)
                for name in self.val.sources
            }

    # -- stopping and resuming

    def progress_state(self) -> dict[str, Any]:
        """Return the loss since the last evaluation, and how long the run is to be."""
        return {"loss_sum": self.loss_sum, "count": self.count, "max_steps": self.max_steps}

    def require_same_end(self, progress: Mapping[str, Any]) -> None:
        """Raise `ColakitError` unless the finished run has as many steps as are wanted now."""
        if (had := progress.get("max_steps", self.max_steps)) != self.max_steps:
            raise ColakitError(
                f"{self.run.path}: is finished after {had} steps; {self.max_steps} are wanted now",
                hint=f"Go on from its base in another folder: --init-from {shlex.quote(str(self.run.base))}",
            )

    def process_state(self) -> None:
        """A process knows nothing of its own."""

    def restore_progress(self, progress: dict[str, Any], process: None) -> None:
        """Go back to what `progress_state` returned.

        Raises:
            ColakitError: if the run is to be longer or shorter, and the last step's rate would have differed.
        """
        was, last = progress.get("max_steps", self.max_steps), self.step - 1
        if self.lr_at(was)(last) != self.lr_at(self.max_steps)(last):
            raise ColakitError(
                f"{self.run.path}: {was} steps were planned, now {self.max_steps}; "
                f"at step {self.step} the rate depends on it",
                hint=f"Resume with its own settings: --config {self.run.settings}",
            )
        self.loss_sum, self.count = progress["loss_sum"], progress["count"]
