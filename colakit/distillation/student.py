"""The recurrent student, built alike for `distill` and for its control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.api.session import Session
from colakit.data.corpora import Split
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.inference.classifier import SentenceClassifier
from colakit.models.meta_device import without_weights
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.distillation_heads import StudentWithHeads
from colakit.models.rnn.model import DistilRNN
from colakit.training.job import Job
from colakit.training.objectives import Objective
from colakit.training.task_data import TaskData, examples

EMBEDDING_STD = 0.1  # of embeddings taken from a base, as of those that are drawn


@dataclass(frozen=True)
class TeacherTargets:
    """What teachers say of N training sentences.

    Attributes:
        logits: (N, C).
        hidden: (N, D), last hidden states; None where they are not matched.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float16] | None = None


def empty_student(session: Session, task: TaskData, vocab_size: int) -> DistilRNN:
    """Return a student without weights, for a dry run."""
    session.reporter.say("of its embedding, only the rows of tokens that training reads will train")
    with without_weights():
        return DistilRNN(_config(session, task, vocab_size))


def _config(session: Session, task: TaskData, vocab_size: int) -> RNNConfig:
    shape = session.settings.student.model_dump(exclude={"vocabulary", "embeddings"})
    kept = session.settings.student.vocabulary
    rows = None if kept is None or kept >= vocab_size else kept + 1  # row 0 is all others'
    return RNNConfig(vocab_size, len(task.corpus.label_names), num_embeddings=rows, **shape)


def student_job(
    session: Session,
    task: TaskData,
    *,
    backend: SentenceTokenizer,
    max_tokens: int,
    objective: Objective,
    train: Split,
    word_vectors: Callable[[], NDArray[np.float32]],
    lore: TeacherTargets | None = None,
    sections: tuple[str, ...] = (),
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Job, list[str]]:
    """Return the job that trains a student, and a line on its shape.

    Args:
        backend: the teacher's or the base's tokenizer; a student wants no boundary tokens of it.
        max_tokens: longest sentence; the teacher's limit, so that both read the same text.
        train: what is learnt from: labelled, with `UNLABELLED` where only teachers know.
        word_vectors: returns the base's (V, D) token embedding.
        lore: what teachers say of `train`.
    """
    settings = session.settings.student_training
    model, classifier = _student(session, task, backend, max_tokens, facts or {})
    said = (lore.logits, lore.hidden) if lore is not None else (None, None)
    learnt = examples(session, classifier, train, *said)
    kept = _choose_tokens(model, learnt.tokens)
    if session.settings.student.embeddings == "base":
        _begin_as_base(model, word_vectors(), kept)
    model.train_rows(torch.from_numpy(learnt.tokens.ids.astype(np.int64)))
    heads = StudentWithHeads(
        model,
        teacher_width=None if said[1] is None else said[1].shape[1],
        predicts_tokens=bool(settings.lm_weight or settings.lm_weight_end),
    )
    session.compute.place(heads)
    job = Job(
        session=session,
        task=task,
        training=settings,
        classifier=classifier,
        train=learnt,
        val=examples(session, classifier, task.val),
        dev={name: examples(session, classifier, split) for name, split in task.reports.items()},
        objective=objective,
        sections=("student", "student_training", *sections),
        identity={
            "tokenizer": classifier.tokenizer.fingerprint(),
            **task.identity(),
            "learnt": train.fingerprint(),
            **(identity or {}),
        },
        heads=heads,
        max_steps=settings.max_steps,
        facts=dict(facts or {}),
    )
    return job, [_describe(model)]


def _student(
    session: Session, task: TaskData, backend: SentenceTokenizer, max_tokens: int, facts: Mapping[str, Any]
) -> tuple[DistilRNN, SentenceClassifier]:
    """Draw a student's weights; it reads with a tokenizer of its own, without boundary tokens."""
    settings = session.settings
    tokenizer = SentenceTokenizer(backend.backend, backend.end_of_text_id)
    model = DistilRNN(_config(session, task, tokenizer.vocab_size))
    classifier = SentenceClassifier(
        model=model,
        tokenizer=tokenizer,
        label_names=task.corpus.label_names,
        max_tokens=min(settings.data.max_tokens or max_tokens, max_tokens),
        origin={
            "command": session.command,
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json"),
            **facts,
        },
    )
    return model, classifier


def _choose_tokens(model: DistilRNN, tokens: Tokens) -> NDArray[np.int64]:
    """Give the most frequent tokens rows of their own in the embedding; return them in the rows' order."""
    config = model.config
    if config.num_embeddings is None:
        return np.arange(config.vocab_size)
    counts = np.bincount(tokens.ids, minlength=config.vocab_size)
    kept = np.argsort(-counts, kind="stable")[: config.num_embeddings - 1]
    model.embed_only(kept.tolist())
    return kept


def _begin_as_base(model: DistilRNN, vectors: NDArray[np.float32], kept: NDArray[np.int64]) -> None:
    """Set the embeddings of the tokens `kept` to the base's (V, D) own, in their principal directions.

    A student with fewer than D dimensions takes the first of them; one with more draws the others. The
    vectors are rounded to bf16, as a teacher's checkpoint may hold them: its student starts as its control.
    """
    width = min(model.config.embedding_size, vectors.shape[1])
    chosen = torch.from_numpy(vectors[kept]).bfloat16().double().numpy()
    chosen -= chosen.mean(axis=0)
    _, directions = np.linalg.eigh(chosen.T @ chosen)  # (D, D), the least important first
    reduced = chosen @ directions[:, ::-1][:, :width]
    rows = torch.from_numpy((reduced * (EMBEDDING_STD / reduced.std())).astype(np.float32))
    with torch.no_grad():
        model.embedding.weight[-len(rows) :, :width] = rows  # row 0 may be all others'


def _describe(model: DistilRNN) -> str:
    config = model.config
    shape = f"{'bidirectional ' if config.bidirectional else ''}{config.cell}, hidden {config.hidden_size}"
    tokens = f"{config.vocab_size:,} tokens in {model.embedding.num_embeddings:,} embeddings"
    return f"student: {shape}, {config.pooling} pooling, {tokens}"
