"""`train_scratch`: the control. Same student, initial weights and budget as `distill`, without a teacher."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.data.tokenizer import SentenceTokenizer
from colakit.distillation.student import empty_student, student_job
from colakit.distillation.transfer_set import augment
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import load_gpt, plan_config, read_config, resolve_base
from colakit.storage.output import Resume
from colakit.training.classifier_trainer import ClassifierJob, ClassifierTrainer
from colakit.training.objectives import line, supervised
from colakit.training.task_data import TaskData


def train_scratch(session: Session, *, resume: Resume = Resume.NEVER) -> dict[str, Any]:
    """Train the control, write the run folder and return the summary (or the plan of a dry run).

    The base supplies the tokenizer and, by default, the token embeddings.
    """
    if session.dry_run:
        task, vocab_size = session.load_task(), plan_config(session.settings.base).vocab_size
        return session.plan(task, empty_student(session.settings.student, task, vocab_size, session.reporter))
    with session.training_run(resume) as run:
        return ClassifierTrainer(_job(session, session.load_task()), run).train()


def _job(session: Session, task: TaskData) -> ClassifierJob:
    settings, training = session.settings, session.settings.student_training
    folder = resolve_base(settings.base)
    train = task.train
    if settings.train_scratch.augmented:
        train = augment(task, settings.transfer, session.arrays, session.reporter)
    seed_everything(settings.seed)  # same initial weights as `distill`, whatever was drawn before
    return student_job(
        task,
        train,
        settings.student,
        training,
        tokenizer=SentenceTokenizer.from_base(folder),
        max_tokens=read_config(folder).num_positions,
        data_max_tokens=settings.data.max_tokens,
        objective=supervised(line(training.lm_weight, training.lm_weight_end)),
        base_embeddings=lambda: load_gpt(folder).body.embedding.weight.detach().float().numpy(),
        summary={"augmented": len(train) - len(task.train)},
        settings_dump=settings.model_dump(mode="json"),
        compute=session.compute,
        arrays=session.arrays,
        reporter=session.reporter,
        **session.job_options(),
    )
