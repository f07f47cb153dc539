"""Trains language models: on windows of running text (pretrain), or on sentences (finetune, samplers)."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.config.finetune import FinetuneSettings
from colakit.config.paths import portable_name
from colakit.config.pretrain import PretrainSettings
from colakit.data.batches import Examples
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import plan_inference
from colakit.data.windows import Windows
from colakit.errors import ColakitError
from colakit.inference.forward import bits_per_byte, evaluating
from colakit.models.gpt.model import GPT
from colakit.models.lora import merge_and_unload
from colakit.storage.gpt2 import base_fingerprint, load_gpt, write_base
from colakit.training.averaging import StartAverage
from colakit.training.epochs import steps, steps_per_epoch
from colakit.training.job import TrainJob
from colakit.training.loop import StepBatch, StepReport
from colakit.training.objectives import language_modelling
from colakit.training.run import TrainingRun
from colakit.training.trainer import Trainer

EVALUATION_BATCH = 128  # sentences


@dataclass(kw_only=True)
class LMJob(TrainJob):
    """Language modelling of running text.

    Attributes:
        tokenizer: written with the base.
        train, val: windows of text.
        average: of the first and the current weights; it is evaluated and written.
    """

    settings: PretrainSettings
    model: GPT
    tokenizer: SentenceTokenizer
    train: Windows
    val: Windows
    average: StartAverage


class LMTrainer(Trainer):
    """Trains on windows; writes the base at every evaluation."""

    job: LMJob
    model: GPT

    def __init__(self, job: LMJob, run: TrainingRun) -> None:
        super().__init__(job, run)
        self.steps_per_epoch = max(1, len(job.train) // job.settings.batch_size)
        if job.settings.batch_size % run.group.world_size:
            raise ColakitError(
                f"pretrain.batch_size (={job.settings.batch_size}) must be a multiple of the number of "
                f"processes (={run.group.world_size})"
            )

    def batches(self) -> Iterator[StepBatch]:
        """Yield the input of the steps after `self.step`; an epoch has whole batches only."""
        train, settings = self.job.train, self.job.settings
        size, micro = settings.batch_size, settings.micro_batch_size or settings.batch_size
        while self.step < self.max_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            plan = train.plan(self.job.seed, epoch)
            for position in range(done, min(self.steps_per_epoch, done + self.max_steps - self.step)):
                rows = plan[np.arange(position * size, (position + 1) * size) % len(plan)]
                share = rows[self.group.rank :: self.group.world_size]
                batches = [train.batch(share[i : i + micro]) for i in range(0, len(share), micro)]
                yield StepBatch(
                    batches, train.count(rows), epoch, f"batch {position + 1} of epoch {epoch + 1}"
                )

    def observe(self, report: StepReport) -> str:
        """Return the unit of the loss."""
        return " nats/token"

    def is_evaluation_due(self) -> bool:
        """Return whether this step ends with an evaluation."""
        every = self.job.settings.evaluate_every_steps
        return every is not None and self.step % every == 0

    def evaluate(self) -> str:
        """Measure bits per byte on a part of each validation text; write the current base."""
        measured: dict[str, float] = {}
        if self.group.is_main:
            measured = self.write_and_measure(limit=self.job.settings.evaluate_windows)
        self.log("evaluation", epoch=self.epoch, train=self.mean_loss, bits_per_byte=measured)
        return "val: bits/byte " + ", ".join(f"{n} {v:.3f}" for n, v in measured.items())

    def write_and_measure(self, limit: int | None) -> dict[str, float]:
        """Write model (bf16) and tokenizer to `base/`; return bits per byte by validation text.

        Args:
            limit: windows per text, evenly spaced; None measures all.
        """
        val = self.job.val
        with self.job.average.applied():
            write_base(self.model, self.job.tokenizer, self.folder.base)
            return {
                name: bits_per_byte(self.model, val.measured(name, limit), self.compute)
                for name in val.sources
            }

    def evaluated_sentences(self) -> tuple[int, int]:
        """Return how many windows are measured during training, and how many at its end."""
        settings, val = self.job.settings, self.job.val
        at_end = [len(val.in_order(name, None)) for name in val.sources]
        each = sum(min(count, settings.evaluate_windows) for count in at_end)
        every = settings.evaluate_every_steps or self.max_steps
        return -(-self.max_steps // every) * each, sum(at_end)

    def seconds_per_evaluated_sentence(self, sample: int) -> float:
        """Measure up to `sample` windows of the first validation text."""
        val, name = self.job.val, next(iter(self.job.val.sources))
        begin = time.monotonic()
        bits_per_byte(self.model, val.measured(name, sample), self.compute)
        return (time.monotonic() - begin) / len(val.in_order(name, sample))

    def check_length(self, planned: int, *, is_finished: bool) -> None:
        """Raise `ColakitError` if the number of steps was changed and the run cannot go on with it.

        It cannot if it is finished, or if the learning rate of its last step would differ.
        """
        if is_finished and planned != self.max_steps:
            raise ColakitError(
                f"{self.folder.path}: is finished after {planned} steps (got {self.max_steps})",
                hint="Continue from its base in another folder: "
                f"--init-from {shlex.quote(str(self.folder.base))}",
            )
        last = self.step - 1
        if not is_finished and self.lr_at(planned)(last) != self.lr_at(self.max_steps)(last):
            raise ColakitError(
                f"{self.folder.path}: {planned} steps were planned, now {self.max_steps}; the learning rate "
                f"at step {self.step} depends on it",
                hint=f"Resume with its own settings: --config {self.folder.settings}",
            )

    def finish(self) -> dict[str, Any]:
        """Measure all validation text; write and print the result."""
        measured = self.write_and_measure(limit=None)
        summary = self.write_summary(
            "tokens",
            model="gpt2",
            bits_per_byte=measured,
            tokens=self.step * self.job.settings.step_tokens,
            parameters=sum(p.numel() for p in self.model.parameters()),
        )
        rows = [[name, f"{value:.4f}"] for name, value in measured.items()]
        self.reporter.table("Bits per byte, validation text", ["text", "bits per byte"], rows)
        self.reporter.result(f"{self.folder.base} ({self.seconds:.0f} s of training)")
        return summary


@dataclass(kw_only=True)
class SentenceLMJob(TrainJob):
    """Language modelling of sentences, each between two end-of-text tokens.

    Attributes:
        base: name of the base.
        tokenizer: written with the tuned base.
        train, val: sentences.
    """

    settings: FinetuneSettings
    model: GPT
    base: str
    tokenizer: SentenceTokenizer
    train: Examples
    val: Examples


class SentenceLMTrainer(Trainer):
    """Fine-tunes a language model on sentences and keeps the weights with the least validation loss."""

    job: SentenceLMJob
    model: GPT

    def __init__(self, job: SentenceLMJob, run: TrainingRun) -> None:
        super().__init__(job, run)
        self.steps_per_epoch = steps_per_epoch(job.train, job.settings.batch_size)

    def batches(self) -> Iterator[StepBatch]:
        """Yield the input of the steps after `self.step`; a step counts its tokens."""
        return steps(
            self.job.train,
            self.job.settings,
            seed=self.job.seed,
            start=self.step,
            max_steps=self.max_steps,
            processes=self.group,
            count=lambda index: _count_targets(self.job.train, index),
        )

    def observe(self, report: StepReport) -> str:
        """Return the unit of the loss."""
        return " nats/token"

    def is_evaluation_due(self) -> bool:
        """Return whether this step ends an epoch."""
        return self.step % self.steps_per_epoch == 0

    def evaluate(self) -> str:
        """Measure the validation loss; keep the weights if they are the best so far."""
        batches = plan_inference(self.job.val.tokens.lengths, EVALUATION_BATCH)
        loss = self.group.broadcast(self._val_loss(batches) if self.group.is_main else None)
        assert loss is not None
        self.log("evaluation", epoch=self.epoch, train=self.mean_loss, val=loss)
        self.keep_best({"loss": loss}, lambda metrics: -metrics["loss"])
        return f"val: loss {loss:.3f} nats/token, epoch {self.epoch:.2f}"

    def evaluated_sentences(self) -> tuple[int, int]:
        """Return how many sentences are evaluated during training; none at its end."""
        return -(-self.max_steps // self.steps_per_epoch) * len(self.job.val), 0

    def seconds_per_evaluated_sentence(self, sample: int) -> float:
        """Measure the evaluation of a batch with sentences of medium length."""
        batches = plan_inference(self.job.val.tokens.lengths, sample)
        medium = batches[len(batches) // 2]
        begin = time.monotonic()
        self._val_loss([medium])
        return (time.monotonic() - begin) / len(medium)

    def _val_loss(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """Return the loss of batches of the validation split in nats per token."""
        val, nll, count = self.job.val, 0.0, 0
        with evaluating(self.model):
            for index in batches:
                batch = val.batch(index).to(self.compute.device)
                with self.compute.autocast():
                    nll += language_modelling(self.model, batch).total.item()
                count += _count_targets(val, index)
        return nll / count

    def finish(self) -> dict[str, Any]:
        """Load the best weights, write the base, and print the result."""
        best = self.load_best()
        merge_and_unload(self.model)
        write_base(self.model, self.job.tokenizer, self.folder.base)
        summary = self.write_summary(
            "tokens",
            model="gpt2",
            objective="language-modelling",
            base=portable_name(self.job.base),
            base_fingerprint=base_fingerprint(load_gpt(self.folder.base)),  # rounded to bf16
            best=best,
        )
        self.reporter.table(
            "Validation split, as a language model",
            ["epoch", "nats/token", "perplexity"],
            [[f"{best['epoch']:.2f}", f"{best['loss']:.4f}", f"{math.exp(best['loss']):.1f}"]],
        )
        self.reporter.result(f"{self.folder.base} ({self.seconds:.0f} s of training)")
        return summary


def _count_targets(examples: Examples, index: NDArray[np.int64]) -> int:
    """Return the number of predicted tokens in the sentences at `index`: all but the first of each."""
    return int((examples.tokens.lengths[index] - 1).sum())
