"""`colakit distill`: a recurrent student learns to answer as its teacher does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.commands.job import Job
from colakit.commands.runner import run_job
from colakit.commands.students import empty_student, student_job
from colakit.commands.task import Task, encode, percent
from colakit.context import Context, Resume
from colakit.data.corpora import Split
from colakit.engine.classifier import SentenceClassifier, load_classifier
from colakit.engine.comparison import experiment_key
from colakit.engine.metrics import measure
from colakit.engine.objectives import distillation
from colakit.engine.randomness import seed_everything
from colakit.errors import ColakitError
from colakit.models.rnn import DistilRNN


def run(context: Context, *, resume: Resume) -> dict[str, Any]:
    """Distil the teacher and report the student."""
    return run_job(context, _build, _plan, resume=resume)


def _plan(context: Context, task: Task) -> DistilRNN:
    return empty_student(context, task, _load_teacher(context, task).tokenizer.vocab_size)


def _build(context: Context, task: Task) -> tuple[Job, list[str]]:
    settings = context.settings
    teacher = _load_teacher(context, task)
    fingerprint = teacher.fingerprint()
    train_logits = teacher_logits(context, teacher, fingerprint, task.train)
    held_out = teacher_logits(context, teacher, fingerprint, task.holdout)
    metrics = measure(held_out, task.holdout.require_labels(), teacher.decide(held_out))
    if metrics.collapsed:
        context.reporter.warn(
            "the teacher answers one class to every held-out sentence; it has little to teach"
        )
    seed_everything(settings.seed)  # loading a teacher may draw; the student must start as its control does
    job, lines = student_job(
        context,
        task,
        backend=teacher.tokenizer,
        max_tokens=teacher.max_tokens or np.iinfo(np.int32).max,
        objective=distillation(
            kd_weight=settings.distill.kd_weight,
            temperature=settings.distill.temperature,
            soft_loss=settings.distill.soft_loss,
        ),
        teacher_logits=train_logits,
        sections=("distill",),
        identity={"teacher": fingerprint},
        facts={
            "teacher": {
                "path": settings.distill.teacher,
                "fingerprint": fingerprint,
                "experiment": experiment_key(teacher.origin),
                "holdout": metrics.as_dict(),
                "parameters": sum(p.numel() for p in teacher.model.parameters()),
            }
        },
    )
    quality = (
        f"held-out accuracy {percent(metrics.accuracy)} % (majority {percent(metrics.majority_rate)} %), "
        f"MCC {metrics.mcc:.3f}"
    )
    return job, [f"teacher: {settings.distill.teacher}, {quality}", *lines]


def _load_teacher(context: Context, task: Task) -> SentenceClassifier:
    path = context.settings.distill.teacher
    if path is None:
        raise ColakitError(
            "distill.teacher is not set", hint="Name a ckpt.pt, run folder or adapter folder: --teacher PATH"
        )
    base = context.settings.base if context.resolved.was_typed("base") else None
    teacher = load_classifier(path, base=base)
    teacher.require_labels(task.corpus.label_names, f"--teacher {path}")
    return teacher


def teacher_logits(
    context: Context, teacher: SentenceClassifier, fingerprint: str, split: Split
) -> NDArray[np.float32]:
    """Return the teacher's (N, C) logits for a split, computed once and kept in the cache."""
    compute = context.compute

    def ask() -> dict[str, NDArray[Any]]:
        context.reporter.say(f"asking the teacher about {len(split)} sentences ({split.name})")
        compute.place(teacher.model.requires_grad_(False))
        return {"logits": teacher.logits(encode(context, teacher, split, "teacher, "), compute)}

    key = {"teacher": fingerprint, "data": split.fingerprint(), "dtype": str(compute.dtype)}
    return context.arrays.get("teacher-logits", key, ask)["logits"]
