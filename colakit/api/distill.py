"""`colakit distill`: a recurrent student learns to answer as its teachers do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from colakit.api.recorded_data import recorded_data
from colakit.api.session import Resume, Session
from colakit.config.settings import Settings
from colakit.data.batches import UNLABELLED
from colakit.data.corpora import Split, join_splits
from colakit.distillation.student import TeacherTargets, empty_student, student_job
from colakit.distillation.teachers import (
    Teacher,
    base_name,
    hidden_states,
    load_teachers,
    mean_logits,
    train_logits,
    untuned_base,
)
from colakit.distillation.transfer_set import transfer_set
from colakit.evaluation.metrics import Metrics, measure
from colakit.evaluation.tables import percent
from colakit.models.gpt.model import GPTClassifier
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.seeding import seed_everything
from colakit.storage.folds import expand_folds
from colakit.training.job import Job
from colakit.training.objectives import Objective, distillation, line
from colakit.training.run import run_job
from colakit.training.task_data import TaskData


def run(session: Session, *, resume: Resume) -> dict[str, Any]:
    """Distil the teachers and report the student; where no data is named, it is what they were tuned on."""
    data = recorded_data(session, expand_folds(session.settings.distill.teacher))
    if data is not None:
        session.resolved.settings = session.settings.model_copy(update={"data": data})
    return run_job(session, _build, _plan, resume=resume)


def _plan(session: Session, task: TaskData) -> DistilRNN:
    first = load_teachers(session, task)[0]
    if session.settings.transfer.writes and session.settings.transfer.language_model is None:
        base_name(session, first)
    return empty_student(session, task, first.classifier.tokenizer.vocab_size)


def _build(session: Session, task: TaskData) -> tuple[Job, list[str]]:
    settings = session.settings
    teachers = load_teachers(session, task)
    first = teachers[0].classifier
    transfer = transfer_set(session, task, settings.transfer, lambda: untuned_base(session, teachers[0]))
    taught, num_out_of_fold = train_logits(session, teachers, task.train)
    metrics = _held_out(session, teachers, task)
    parts, logits = [task.train], [taught]
    if len(transfer):
        repeats = settings.distill.upsample
        parts = [*parts * repeats, _unlabelled(transfer)]
        logits = [*logits * repeats, mean_logits(session, teachers, transfer)]
    hidden = None
    if settings.distill.hidden_weight:
        states = {split.name: hidden_states(session, teachers[0], split) for split in (parts[0], parts[-1])}
        hidden = np.concatenate([states[part.name] for part in parts])
    seed_everything(settings.seed)  # loading a teacher may draw; the student must start as its control does
    job, lines = student_job(
        session,
        task,
        backend=first.tokenizer,
        max_tokens=first.max_tokens or np.iinfo(np.int32).max,
        objective=_objective(settings),
        train=join_splits("train", parts),
        lore=TeacherTargets(np.concatenate(logits), hidden),
        word_vectors=lambda: _word_vectors(first.model),
        sections=("distill",),
        identity={"teacher": [teacher.fingerprint for teacher in teachers]},
        facts={
            "teachers": [teacher.facts() for teacher in teachers],
            "teachers_val": metrics.as_dict(),
            "transfer": {"sentences": len(transfer), "fingerprint": transfer.fingerprint()},
            "out_of_fold": num_out_of_fold,
        },
    )
    return job, [*_lines(teachers, metrics, transfer, num_out_of_fold), *lines]


def _objective(settings: Settings) -> Objective:
    distill, training = settings.distill, settings.student_training
    return distillation(
        kd_weight=line(distill.kd_weight, distill.kd_weight_end),
        temperature=line(distill.temperature, distill.temperature_end),
        soft_loss=distill.soft_loss,
        hidden_weight=distill.hidden_weight,
        lm_weight=line(training.lm_weight, training.lm_weight_end),
    )


def _held_out(session: Session, teachers: list[Teacher], task: TaskData) -> Metrics:
    """Measure the teachers together on the held-out slice, each class where it is likelier.

    A single teacher decides at its own threshold.
    """
    logits = mean_logits(session, teachers, task.val)
    decided = teachers[0].classifier.predict_labels(logits) if len(teachers) == 1 else logits.argmax(axis=1)
    metrics = measure(logits, task.val.require_labels(), decided)
    if metrics.collapsed:
        session.reporter.warn(
            "the teacher answers one class to every held-out sentence; it has little to teach"
        )
    return metrics


def _lines(teachers: list[Teacher], metrics: Metrics, transfer: Split, num_out_of_fold: int) -> list[str]:
    names = ", ".join(teacher.path for teacher in teachers)
    found = [
        f"teacher: {names}, held-out accuracy {percent(metrics.accuracy)} % "
        f"(majority {percent(metrics.majority_rate)} %), MCC {metrics.mcc:.3f}"
    ]
    if num_out_of_fold:
        found.append(f"teacher logits out of fold: {num_out_of_fold:,} sentences of train")
    if len(transfer):
        found.append(f"transfer set: {len(transfer):,} sentences")
    return found


def _unlabelled(split: Split) -> Split:
    return Split(split.name, split.sentences, np.full(len(split), UNLABELLED, dtype=np.int64))


def _word_vectors(model: GPTClassifier | DistilRNN) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the (V, D) embedding of a teacher; one that was a student may have one row for many tokens."""
    if isinstance(model, GPTClassifier):
        weight = model.transformer.wte.weight
    else:
        weight = model.embedding.weight[model.rows(torch.arange(model.config.vocab_size))]
    return weight.detach().float().cpu().numpy()
