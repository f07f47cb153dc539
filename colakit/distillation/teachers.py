"""What teachers say about a student's sentences: asked once, kept in the cache, and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.api.session import Session
from colakit.data.corpora import Split
from colakit.data.splits import left_out
from colakit.errors import ColakitError
from colakit.evaluation.comparison import experiment_key, fold_of
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.forward import compute_hidden
from colakit.models.gpt.model import GPTClassifier
from colakit.models.parameters import count_parameters
from colakit.storage.folds import expand_folds
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.training.task_data import TaskData, encode
from colakit.utils.array_cache import Arrays

PART = 2**14  # sentences whose logits are one file of the cache
LOGITS = "teacher-logits"  # that kind of file
NO_SAMPLES = "Name a model that writes sentences (--set transfer.language_model=BASE), or --transfer-size 0."

Key = dict[str, Any]  # what logits depend on
Rows = tuple[int, int]  # sentences of a split from the first up to the second


@dataclass(frozen=True)
class Teacher:
    """One teacher, as people named it."""

    path: str
    classifier: SentenceClassifier
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """Return plain data on it, for the student's summary."""
        return {
            "path": self.path,
            "fingerprint": self.fingerprint,
            "experiment": experiment_key(self.classifier.origin),
            "parameters": count_parameters(self.classifier.model).total,
        }


def load_teachers(session: Session, task: TaskData) -> list[Teacher]:
    """Load every teacher that `distill.teacher` names, folds one by one.

    Raises:
        ColakitError: if it names none, or they read or label differently from each other or the data, or a
            fold is not finished.
    """
    paths = session.settings.distill.teacher
    if not paths:
        raise ColakitError(
            "distill.teacher is not set", hint="Name a ckpt.pt, run folder or adapter folder: --teacher PATH"
        )
    found = [load_teacher(session, task, path) for path in expand_folds(paths)]
    first = found[0]
    for other in found[1:]:
        if other.classifier.tokenizer.vocabulary() != first.classifier.tokenizer.vocabulary():
            raise ColakitError(
                f"--teacher {other.path}: its tokenizer is not that of {first.path}",
                hint="Teachers of one student share a base.",
            )
    return found


def load_teacher(session: Session, task: TaskData, path: str) -> Teacher:
    """Load one teacher.

    Raises:
        ColakitError: if there is none, or it labels differently from the data.
    """
    base = session.settings.base if session.resolved.was_typed("base") else None
    classifier = load_classifier(path, base=base)
    classifier.require_labels(task.corpus.label_names, f"--teacher {path}")
    return Teacher(path, classifier, classifier.fingerprint())


def base_name(session: Session, teacher: Teacher) -> str:
    """Return what the base of a teacher is called: as it was typed, or as the teacher says.

    Raises:
        ColakitError: if the teacher has none.
    """
    if not isinstance(teacher.classifier.model, GPTClassifier):
        raise ColakitError(f"--teacher {teacher.path}: has no base that could write samples", hint=NO_SAMPLES)
    typed = session.resolved.was_typed("base")
    return str(session.settings.base if typed else teacher.classifier.origin.get("base", ""))


def untuned_base(session: Session, teacher: Teacher) -> str:
    """Return the base that a teacher was tuned from: the typed one, or where the teacher says it lies.

    Raises:
        ColakitError: if the teacher has none, or what lies there is another one.
    """
    base = base_name(session, teacher)
    wanted = teacher.classifier.origin.get("base_fingerprint")
    try:
        found = base_fingerprint(load_gpt(resolve_base(base)))
    except ColakitError as error:
        raise ColakitError(f"samples are the teacher's base's: {error.message}", hint=NO_SAMPLES) from error
    if wanted is not None and found != wanted:
        raise ColakitError(f"{base}: is not the base that {teacher.path} was tuned from", hint=NO_SAMPLES)
    return base


def mean_logits(session: Session, teachers: list[Teacher], split: Split) -> NDArray[np.float32]:
    """Return the mean of the teachers' (N, C) logits for a split."""
    return np.mean([logits_of(session, teacher, split) for teacher in teachers], axis=0)


def train_logits(session: Session, teachers: list[Teacher], train: Split) -> tuple[NDArray[np.float32], int]:
    """Return (N, C) logits for train, and for how many sentences they are out of fold.

    Where some teachers have not trained on a sentence (`finetune.leave_out`), theirs are averaged; a teacher
    that has learnt a sentence by heart says little more than its label. Otherwise all teachers' are.
    """
    logits = np.stack([logits_of(session, teacher, train) for teacher in teachers])  # (teachers, N, C)
    unseen = np.stack([unseen_by(teacher, train) for teacher in teachers])  # (teachers, N)
    out_of_fold = unseen.any(axis=0)
    weights = np.where(out_of_fold, unseen, True).astype(np.float32)[:, :, None]
    mean = (logits * weights).sum(axis=0) / weights.sum(axis=0)
    return mean.astype(np.float32), int(out_of_fold.sum())


def hidden_states(session: Session, teacher: Teacher, split: Split) -> NDArray[np.float16]:
    """Return the (N, D) states that the teacher's head reads.

    Raises:
        ColakitError: if the teacher is itself a student.
    """
    model, compute = teacher.classifier.model, session.compute
    if not isinstance(model, GPTClassifier):
        raise ColakitError(f"--teacher {teacher.path}: only a GPT-2's hidden states can be matched")

    def ask() -> Arrays:
        compute.place(model.requires_grad_(False))
        tokens = encode(session, teacher.classifier, split, "teacher, ")
        with session.reporter.progress(f"hidden states, {split.name}", len(split)) as bar:
            hidden = compute_hidden(model, tokens, compute, done=bar.advance)
        return {"hidden": hidden.astype(np.float16)}

    return session.arrays.get("teacher-hidden", _key(session, teacher, split), ask)["hidden"]


def logits_of(session: Session, teacher: Teacher, split: Split) -> NDArray[np.float32]:
    """Return a teacher's (N, C) logits for a split, from the cache where it has been asked before.

    They are kept part by part, so that a command that was stopped goes on where it was.
    """
    bounds = [(start, min(start + PART, len(split))) for start in range(0, max(1, len(split)), PART)]
    keys = {rows: _key(session, teacher, split.take(np.arange(*rows), split.name)) for rows in bounds}
    kept = {rows: session.arrays.load(LOGITS, key) for rows, key in keys.items()}
    known = {rows: arrays for rows, arrays in kept.items() if arrays is not None}
    if missing := {rows: key for rows, key in keys.items() if rows not in known}:
        known |= _ask(session, teacher, split, missing)
    return np.concatenate([known[rows]["logits"] for rows in bounds])


def _ask(session: Session, teacher: Teacher, split: Split, keys: Mapping[Rows, Key]) -> dict[Rows, Arrays]:
    """Ask a teacher about some parts of a split, each kept under its key as soon as it is answered."""
    count = sum(end - start for start, end in keys)
    session.reporter.say(f"asking {teacher.path} about {count:,} sentences ({split.name})")
    classifier, compute = teacher.classifier, session.compute
    tokens = encode(session, classifier, split, "teacher, ")
    compute.place(classifier.model.requires_grad_(False))
    with session.reporter.progress(f"logits, {split.name}", len(split), len(split) - count) as bar:

        def ask(rows: Rows) -> Arrays:
            return {"logits": classifier.logits(tokens.part(*rows), compute, done=bar.advance)}

        return {rows: session.arrays.get(LOGITS, key, partial(ask, rows)) for rows, key in keys.items()}


def _key(session: Session, teacher: Teacher, split: Split) -> Key:
    dtype = str(session.compute.dtype)
    return {"teacher": teacher.fingerprint, "data": split.fingerprint(), "dtype": dtype}


def unseen_by(teacher: Teacher, train: Split) -> NDArray[np.bool_]:
    """Return which sentences of train the teacher was not trained on, by its own record, (N,)."""
    fold = fold_of(teacher.classifier.origin)
    return np.zeros(len(train), dtype=bool) if fold is None else left_out(train.sentences, fold)
