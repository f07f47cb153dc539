"""The recurrent student, built alike for `distill` and for its control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy import float32
from numpy.typing import NDArray

from colakit.commands.job import Job
from colakit.commands.task import Task, examples
from colakit.context import Context
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.classifier import SentenceClassifier
from colakit.engine.objectives import Objective
from colakit.models.empty import without_weights
from colakit.models.rnn import DistilRNN, RNNConfig


def empty_student(context: Context, task: Task, vocab_size: int) -> DistilRNN:
    """Return a student without weights."""
    with without_weights():
        return DistilRNN(_config(context, task, vocab_size))


def _config(context: Context, task: Task, vocab_size: int) -> RNNConfig:
    num_labels = len(task.corpus.label_names)
    return RNNConfig(vocab_size=vocab_size, num_labels=num_labels, **context.settings.student.model_dump())


def student_job(
    context: Context,
    task: Task,
    *,
    backend: SentenceTokenizer,
    max_tokens: int,
    objective: Objective,
    teacher_logits: NDArray[float32] | None = None,
    sections: tuple[str, ...] = (),
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Job, list[str]]:
    """Return the job that trains a student, and a line on its shape.

    Args:
        backend: the teacher's or the base's tokenizer; a student wants no boundary tokens of it.
        max_tokens: longest sentence; the teacher's limit, so that both read the same text.
    """
    settings = context.settings
    tokenizer = SentenceTokenizer(backend.backend, backend.end_of_text_id)
    config = _config(context, task, tokenizer.vocab_size)
    classifier = SentenceClassifier(
        model=DistilRNN(config),
        tokenizer=tokenizer,
        label_names=task.corpus.label_names,
        max_tokens=min(settings.data.max_tokens or max_tokens, max_tokens),
        origin={
            "command": context.command,
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json"),
            **(facts or {}),
        },
    )
    context.compute.place(classifier.model)
    job = Job(
        context=context,
        task=task,
        training=settings.student_training,
        classifier=classifier,
        train=examples(context, classifier, task.train, teacher_logits),
        holdout=examples(context, classifier, task.holdout),
        dev={name: examples(context, classifier, split) for name, split in task.reports.items()},
        objective=objective,
        sections=("student", "student_training", *sections),
        identity={"tokenizer": tokenizer.fingerprint(), **task.identity(), **(identity or {})},
        facts=dict(facts or {}),
    )
    shape = f"{'bidirectional ' if config.bidirectional else ''}{config.cell}, hidden {config.hidden_size}"
    return job, [f"student: {shape}, {config.pooling} pooling, vocabulary {config.vocab_size:,}"]
