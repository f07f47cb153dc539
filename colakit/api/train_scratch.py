"""`train_scratch`: the control. Same student, initial weights and budget as `distill`, without a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from colakit.api.run_set import chosen_runs
from colakit.api.seeds import plan_seeds, train_seeds
from colakit.api.session import Session
from colakit.distillation.initial_weights import STUDENT_BASE
from colakit.distillation.student import base_tokens, empty_student, student_job, student_start
from colakit.distillation.transfer_set import augment, epoch_size
from colakit.errors import ColakitError
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import plan_config
from colakit.storage.output import Resume
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import Summary
from colakit.storage.run_set import open_run_set
from colakit.training.classifier_trainer import ClassifierJob, ClassifierTrainer
from colakit.training.objectives import CROSS_ENTROPY, line, supervised
from colakit.training.run import TrainingRun
from colakit.training.task_data import TaskData


def train_scratch(
    session: Session,
    *,
    resume: Resume = Resume.NEVER,
    like: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Train the control, write the run folder and return the summary (or the plan of a dry run).

    The base supplies the tokenizer and, by default, the token embeddings.

    Args:
        like: a run of `distill`, or its folder of seeds, whose settings the session has. Its steps are taken,
            and its seeds if none are given.
        seeds: train one control for each seed.
    """
    if like is not None:
        seeds = _match(session, like, seeds)
    refuse_unread_base(session)
    own = session.settings.student.base
    runs = chosen_runs(session, resume, seeds=seeds)
    seeds = None if runs is None else runs[1]
    if session.dry_run:
        task = _load_task(session)
        model = _model(session, task)
        measure = session.measurable_stages(task, control_trainer, of_student=own is not None)
        return plan_seeds(session, seeds, lambda: session.plan(task, model, measure))
    if seeds is not None:
        return train_seeds(session, seeds, resume=resume, check=lambda: _model(session, _load_task(session)))
    with session.training_run(resume) as run:
        if run.has_finished_with(session.settings_yaml):
            return run.finished_summary()
        return control_trainer(session, _load_task(session), run).train()


def refuse_unread_base(session: Session) -> None:
    """Raise `ColakitError` if a base is typed and the student has the tokens of another."""
    typed, own = session.resolved.was_typed, session.settings.student.base
    if own is not None and typed("base") and not typed("student.base"):
        raise ColakitError(
            f"--base {session.settings.base}: is not read, the student has the tokens of {own}",
            hint=f"Name it with {STUDENT_BASE} instead.",
        )


def control_trainer(session: Session, task: TaskData, run: TrainingRun) -> ClassifierTrainer:
    """Return the trainer of the control."""
    return ClassifierTrainer(_job(session, task), run)


BUDGET = ("student_training.max_steps", "student_training.epochs", "train_scratch.budget")


def _match(session: Session, like: Path, seeds: Sequence[int] | None) -> Sequence[int] | None:
    """Set the number of steps to that of a run of `distill`, unless one is typed; return the seeds to train.

    The steps of a run that is not finished follow from its settings.

    Raises:
        ColakitError: if it is not a run of `distill`.
    """
    settings, run, runs = session.settings, RunFolder(like), open_run_set(like)
    if not settings.distill.teacher:
        raise ColakitError(f"--like {like}: is not a run of distill", hint="Give a run folder of distill.")
    if not any(map(session.resolved.was_typed, BUDGET)):
        planned = settings.student_training.max_steps
        if run.summary.is_file():
            planned = run.read_summary(Summary).max_steps or planned
        training = settings.student_training.model_copy(update={"max_steps": planned})
        scratch = settings.train_scratch.model_copy(update={"budget": "distill"})
        settings = settings.model_copy(update={"student_training": training, "train_scratch": scratch})
        session.resolved = replace(session.resolved, settings=settings)
    is_chosen = seeds is not None or session.resolved.was_typed("seed")
    return seeds if is_chosen or runs is None else runs.values


def _load_task(session: Session) -> TaskData:
    flag, base = _base(session)
    return session.load_task(bases={flag: base})


def _base(session: Session) -> tuple[str, str]:
    """Return the flag and the name of the base whose tokens the student reads."""
    own = session.settings.student.base
    return ("--base", session.settings.base) if own is None else (STUDENT_BASE, own)


def _model(session: Session, task: TaskData) -> nn.Module:
    """Return the student without weights."""
    flag, base = _base(session)
    return empty_student(session.settings.student, task, plan_config(base, flag).vocab_size)


def _job(session: Session, task: TaskData) -> ClassifierJob:
    settings, training = session.settings, session.settings.student_training
    flag, base = _base(session)
    tokens = base_tokens(base, flag)
    start = student_start(settings.student, tokens, len(task.corpus.label_names))
    train, epoch = task.train, None
    if settings.train_scratch.augmented:
        train = augment(task, settings.transfer, session.arrays, session.reporter)
    if settings.train_scratch.budget == "distill":
        epoch = epoch_size(settings.transfer, len(task.train), settings.distill.upsample)
    seed_everything(settings.seed)  # same initial weights as `distill`, whatever was drawn before
    return student_job(
        task,
        train,
        settings.student,
        training,
        tokens=tokens,
        start=start,
        data_max_tokens=settings.data.max_tokens,
        objective=supervised(line(training.lm_weight, training.lm_weight_end)),
        train_loss=CROSS_ENTROPY,
        summary={"augmented": len(train) - len(task.train)},
        epoch_size=epoch,
        settings_dump=session.portable_settings(),
        compute=session.compute,
        arrays=session.arrays,
        reporter=session.reporter,
        options=session.job_options(),
    )
