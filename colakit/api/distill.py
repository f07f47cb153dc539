"""`distill`: a recurrent student learns the outputs of its teachers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from colakit.api.recorded_data import recorded_data
from colakit.api.session import Session
from colakit.data.batches import UNLABELLED
from colakit.data.corpora import Split, join_splits
from colakit.distillation.student import empty_student, student_job
from colakit.distillation.teachers import Teacher, TeacherTargets, load_teachers, mean_logits, train_logits
from colakit.distillation.transfer_set import make_transfer_set
from colakit.distillation.tuned_sampler import TunedSampler
from colakit.evaluation.metrics import Metrics, measure
from colakit.evaluation.tables import percent
from colakit.models.gpt.model import GPTClassifier
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.seeding import seed_everything
from colakit.storage.folds import expand_folds
from colakit.storage.output import Resume
from colakit.training.classifier_trainer import ClassifierJob, ClassifierTrainer
from colakit.training.job import settings_identity
from colakit.training.objectives import distillation, line
from colakit.training.task_data import TaskData


def distill(session: Session, *, resume: Resume = Resume.NEVER) -> dict[str, Any]:
    """Train a student on its teachers' outputs, write the run folder and return the summary (or the plan).

    If the settings name no data, the data that the teachers were trained on is used.
    """
    data = recorded_data(session, expand_folds(session.settings.distill.teacher))
    if data is not None:
        settings = session.settings.model_copy(update={"data": data})
        session.resolved = replace(session.resolved, settings=settings)
    if session.dry_run:
        return _plan(session)
    with session.training_run(resume) as run:
        return ClassifierTrainer(_job(session, session.load_task()), run).train()


def _plan(session: Session) -> dict[str, Any]:
    settings, task = session.settings, session.load_task()
    first = _load_teachers(session, task)[0]
    if settings.transfer.needs_sampler and settings.transfer.language_model is None:
        first.base(_typed_base(session))  # raises if there is none
    vocab_size = first.classifier.tokenizer.vocab_size
    return session.plan(task, empty_student(settings.student, task, vocab_size, session.reporter))


def _typed_base(session: Session) -> str | None:
    return session.settings.base if session.resolved.was_typed("base") else None


def _load_teachers(session: Session, task: TaskData) -> list[Teacher]:
    return load_teachers(
        session.settings.distill.teacher,
        task.corpus.label_names,
        base=_typed_base(session),
        compute=session.compute,
        arrays=session.arrays,
        reporter=session.reporter,
    )


def _job(session: Session, task: TaskData) -> ClassifierJob:
    settings, training, kd = session.settings, session.settings.student_training, session.settings.distill
    teachers = _load_teachers(session, task)
    first = teachers[0].classifier
    transfer = _transfer_set(session, task, teachers[0])
    logits, num_out_of_fold = train_logits(teachers, task.train)
    metrics = _val_metrics(session, teachers, task)
    parts, part_logits = [task.train], [logits]
    if len(transfer):
        unlabelled = np.full(len(transfer), UNLABELLED, dtype=np.int64)
        parts = [*parts * kd.upsample, Split(transfer.name, transfer.sentences, unlabelled)]
        part_logits = [*part_logits * kd.upsample, mean_logits(teachers, transfer)]
    hidden = None
    if kd.hidden_weight:
        states = {split.name: teachers[0].hidden_states(split) for split in (parts[0], parts[-1])}
        hidden = np.concatenate([states[part.name] for part in parts])
    seed_everything(settings.seed)  # the same initial weights as the control, whatever was drawn before
    return student_job(
        task,
        join_splits("train", parts),
        settings.student,
        training,
        tokenizer=first.tokenizer,
        max_tokens=first.max_tokens or np.iinfo(np.int32).max,
        data_max_tokens=settings.data.max_tokens,
        objective=distillation(
            kd_weight=line(kd.kd_weight, kd.kd_weight_end),
            temperature=line(kd.temperature, kd.temperature_end),
            soft_loss=kd.soft_loss,
            hidden_weight=kd.hidden_weight,
            lm_weight=line(training.lm_weight, training.lm_weight_end),
        ),
        base_embeddings=lambda: _token_embeddings(first.model),
        targets=TeacherTargets(np.concatenate(part_logits), hidden),
        identity={
            **settings_identity(distill=kd.model_dump(mode="json", exclude={"teacher"})),
            "teacher": [teacher.fingerprint for teacher in teachers],
        },
        lines=_lines(teachers, metrics, transfer, num_out_of_fold),
        summary={
            "teachers": [teacher.summary() for teacher in teachers],
            "teachers_val": metrics.as_dict(),
            "transfer": {"sentences": len(transfer), "fingerprint": transfer.fingerprint()},
            "out_of_fold": num_out_of_fold,
        },
        settings_dump=settings.model_dump(mode="json"),
        compute=session.compute,
        arrays=session.arrays,
        reporter=session.reporter,
        **session.job_options(),
    )


def _transfer_set(session: Session, task: TaskData, teacher: Teacher) -> Split:
    settings, sampler = session.settings.transfer, None
    if settings.needs_sampler:
        base = settings.language_model or teacher.untuned_base(_typed_base(session))
        sampler = tuned_sampler(session, task, base)
    return make_transfer_set(task, settings, session.arrays, session.reporter, sampler)


def tuned_sampler(session: Session, task: TaskData, base: str) -> TunedSampler:
    """Return the sampler for the settings; it is trained when it first samples, unless it is cached."""
    settings = session.settings
    return TunedSampler(
        task,
        base,
        settings.transfer,
        settings.finetune,
        settings.lora,
        settings.data.max_tokens,
        session.compute,
        session.gpt_training_compute,
        settings.cpu_kernels,
        session.cache_folder,
        session.arrays,
        session.reporter,
    )


def _val_metrics(session: Session, teachers: list[Teacher], task: TaskData) -> Metrics:
    """Return the metrics of the mean of the teachers on val (argmax; a single teacher: its threshold)."""
    logits = mean_logits(teachers, task.val)
    single = teachers[0].classifier if len(teachers) == 1 else None
    labels = single.predict_labels(logits) if single is not None else logits.argmax(axis=1)
    metrics = measure(logits, task.val.require_labels(), labels)
    if metrics.collapsed:
        session.reporter.warn("the teacher predicts one class for all of val; it has little to teach")
    return metrics


def _lines(teachers: list[Teacher], metrics: Metrics, transfer: Split, num_out_of_fold: int) -> list[str]:
    lines = [
        f"teacher: {', '.join(teacher.path for teacher in teachers)}, val accuracy "
        f"{percent(metrics.accuracy)} % (majority {percent(metrics.majority_rate)} %), MCC {metrics.mcc:.3f}"
    ]
    if num_out_of_fold:
        lines.append(f"teacher logits out of fold: {num_out_of_fold:,} sentences of train")
    if len(transfer):
        lines.append(f"transfer set: {len(transfer):,} sentences")
    return lines


def _token_embeddings(model: GPTClassifier | DistilRNN) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the (V, D) token embeddings; those of a recurrent teacher may share rows."""
    if isinstance(model, GPTClassifier):
        weight = model.body.embedding.weight
    else:
        weight = model.embedding.weight[model.embedding_rows(torch.arange(model.config.vocab_size))]
    return weight.detach().float().cpu().numpy()
