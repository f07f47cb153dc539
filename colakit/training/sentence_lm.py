"""`colakit finetune --objective language-modelling`: a base that writes sentences like those of train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from colakit.api.session import Session
from colakit.data.batches import Examples
from colakit.data.corpora import Split
from colakit.data.tokens import SentenceTokenizer, plan_inference
from colakit.errors import ColakitError
from colakit.inference.forward import evaluating
from colakit.models.gpt.model import GPT
from colakit.models.lora import merge_and_unload
from colakit.runtime.distributed import Processes
from colakit.storage.bases import write_base
from colakit.storage.gpt2 import base_fingerprint
from colakit.storage.run_folder import RunFolder
from colakit.training.epochs import steps, steps_an_epoch
from colakit.training.loop import StepBatch, StepReport
from colakit.training.objectives import language_modelling
from colakit.training.optimizers import tuning_optimizer
from colakit.training.run import Training
from colakit.training.task_data import TaskData
from colakit.training.trainer import Lesson, Trainer, settings_identity

FREE_TO_CHANGE = {"log_every", "save_every_steps"}
WITHOUT_MEANING = (
    *(
        "evaluate_every_steps",
        "evaluate_every_epochs",
        "patience",
        "ema_decay",
        "metric_for_best_model",
        "threshold",
    ),
    *("track_dev", "add_bos", "add_eos", "frozen_cache_mib"),
)
"""Settings of `finetune` that tuning a language model does not ask: it looks at the held-out slice after each
epoch, keeps the weights with the least loss, has an end-of-text token on both sides of a sentence, and keeps
no states of blocks that learn nothing."""


def refuse_what_has_no_meaning(session: Session) -> None:
    """Raise `ColakitError` where a setting was typed that would be passed over; a file's may serve others."""
    for name in WITHOUT_MEANING:
        if session.resolved.was_typed(f"finetune.{name}"):
            raise ColakitError(
                f"finetune.{name} means nothing to --objective language-modelling", hint="Leave it out."
            )


@dataclass(frozen=True)
class Sentences:
    """A split that a language model reads, each sentence between two end-of-text tokens."""

    examples: Examples

    @classmethod
    def of(cls, session: Session, split: Split, tokenizer: SentenceTokenizer, max_tokens: int) -> Sentences:
        """Tokenise a split."""
        tokens = tokenizer.encode(split.sentences, max_tokens)
        if tokens.num_truncated:
            session.reporter.warn(
                f"{split.name}: {tokens.num_truncated} of {len(split)} sentences are longer than "
                f"{max_tokens} tokens and were cut"
            )
        return cls(Examples(tokens, split.require_labels()))

    def count(self, index: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Return the tokens that are predicted in the sentences at `index`: all but the first of each."""
        return int((self.examples.tokens.lengths[index] - 1).sum())


@dataclass
class Progress:
    """Where a run stands; plain data and tensors, so that it can be saved and restored.

    Attributes:
        nats, count: loss and tokens since the last evaluation.
        best: held-out nats a token at the best evaluation, with its step.
        best_tensors: the trainable tensors of that moment, on the CPU.
    """

    nats: float = 0.0
    count: int = 0
    best: dict[str, Any] | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)


class SentenceLMTrainer(Trainer):
    """Tunes a language model on sentences; the moment with the least held-out loss stays in `progress`."""

    model: GPT

    def __init__(
        self, session: Session, lesson: Lesson, run: RunFolder, group: Processes, parts: dict[str, Sentences]
    ) -> None:
        super().__init__(session, lesson, run, group)
        self.parts = parts
        self.steps_per_epoch = lesson.max_steps // session.settings.finetune.epochs
        self.progress = Progress()

    def batches(self) -> Iterator[StepBatch]:
        """Return the steps of the epochs, from this one on; a step's count is its tokens."""
        train, settings = self.parts["train"], self.session.settings.finetune
        return steps(
            train.examples,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            seed=self.session.settings.seed,
            start=self.step,
            max_steps=self.max_steps,
            processes=self.group,
            count=train.count,
        )

    def observe(self, report: StepReport) -> str:
        """Add up the loss."""
        self.progress.nats += report.loss * report.count
        self.progress.count += report.count
        return f"epoch {report.epoch + 1}: loss {self.progress.nats / self.progress.count:.3f} nats a token"

    def is_evaluation_due(self) -> bool:
        """Whether this step ends an epoch."""
        return self.step % self.steps_per_epoch == 0

    def evaluate(self) -> str:
        """Measure the held-out slice, and keep the weights if it is the best yet."""
        progress = self.progress
        measured = self.group.broadcast(self.measure() if self.group.is_main else None)
        assert measured is not None
        epoch = self.step / self.steps_per_epoch
        self.log("evaluation", epoch=epoch, train=progress.nats / progress.count, val=measured)
        if progress.best is None or measured < progress.best["nats"]:
            progress.best = {"nats": measured, "step": self.step, "epoch": epoch}
            progress.best_tensors = self.trainable()
        progress.nats, progress.count = 0.0, 0
        return f"epoch {epoch:.2f} held-out loss {measured:.3f} nats a token"

    def measure(self) -> float:
        """Return the held-out slice's nats a token."""
        held = self.parts["val"]
        nats, count = 0.0, 0
        with evaluating(self.model):
            for index in plan_inference(held.examples.tokens.lengths, 128):
                batch = held.examples.batch(index).to(self.compute.device)
                with self.compute.autocast():
                    nats += language_modelling(self.model, batch).total.item()
                count += held.count(index)
        return nats / count

    def progress_state(self) -> dict[str, Any]:
        """Return `progress` as plain data and tensors."""
        return vars(self.progress)

    def process_state(self) -> None:
        """A process knows nothing of its own."""

    def restore_progress(self, progress: dict[str, Any], process: None) -> None:
        """Go back to what `progress_state` returned."""
        self.progress = Progress(**progress)


def prepare(
    session: Session, task: TaskData, model: GPT, tokenizer: SentenceTokenizer, train: Split, fingerprint: str
) -> Training:
    """Make the tuning of `model`, whose trainable parameters are chosen, as a language model.

    Args:
        tokenizer: puts the end-of-text token on either side of a sentence.
        train: what is learnt from.
        fingerprint: of the base.
    """
    settings, compute = session.settings, session.compute
    longest = min(settings.data.max_tokens or model.config.num_positions, model.config.num_positions)
    parts = {split.name: Sentences.of(session, split, tokenizer, longest) for split in (train, task.val)}
    compute.place(model)
    lesson = Lesson(
        model=model,
        objective=language_modelling,
        optimizer=tuning_optimizer(
            model,
            lr=settings.finetune.lr,
            weight_decay=settings.finetune.weight_decay,
            loraplus_lr_ratio=settings.lora.loraplus_lr_ratio if settings.finetune.method == "lora" else 1.0,
        ),
        training=settings.finetune,
        max_steps=settings.finetune.epochs
        * steps_an_epoch(parts[train.name].examples, settings.finetune.batch_size),
        identity={
            **settings_identity(session.settings, ("lora", "finetune"), FREE_TO_CHANGE),
            "base": fingerprint,
            "tokenizer": tokenizer.fingerprint(),
            "max_tokens": longest,
            **task.identity(),
        },
    )
    return Training(
        [
            f"base: {settings.base}, as a language model of {len(train):,} sentences, "
            f"{settings.finetune.method}"
        ],
        fit=lambda run, group: SentenceLMTrainer(session, lesson, run, group, parts),
        finish=lambda run, fit: _finish(session, run, fit, tokenizer),
    )


def _finish(
    session: Session, run: RunFolder, fit: SentenceLMTrainer, tokenizer: SentenceTokenizer
) -> dict[str, Any]:
    """Take the best moment, write the base, and print the result."""
    best = fit.progress.best
    assert best is not None, "the last step is always evaluated"
    fit.load_trainable(fit.progress.best_tensors)
    merge_and_unload(fit.model)
    write_base(fit.model.transformer, tokenizer, run.base)
    summary = {
        "command": session.command,
        "model": "gpt2",
        "objective": "language-modelling",
        "seed": session.settings.seed,
        "base": session.settings.base,
        "base_fingerprint": base_fingerprint(fit.model),
        "best": best,
        "steps": fit.step,
        "seconds": round(fit.seconds, 2),
        "tokens_per_second": round(fit.counted_per_second, 1),
        "compute": str(fit.compute),
    }
    run.write_summary(summary)
    perplexity = math.exp(best["nats"])
    session.reporter.table(
        "Held-out sentences, as a language model",
        ["epoch", "nats a token", "perplexity"],
        [[f"{best['epoch']:.2f}", f"{best['nats']:.4f}", f"{perplexity:.1f}"]],
    )
    session.reporter.result(f"{run.base} ({fit.seconds:.0f} s of training)")
    return summary
