"""`colakit train-scratch`: the student's architecture, start and budget, without a teacher."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Resume, Session
from colakit.data.tokenizer import SentenceTokenizer
from colakit.distillation.student import empty_student, student_job
from colakit.distillation.transfer_set import augmented
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import load_gpt, plan_config, read_config, resolve_base
from colakit.training.job import Job
from colakit.training.objectives import line, supervised
from colakit.training.run import run_job
from colakit.training.task_data import TaskData


def run(session: Session, *, resume: Resume) -> dict[str, Any]:
    """Train the control and report it; of the base it takes the tokenizer, and as a rule the embedding."""
    return run_job(session, _build, _plan, resume=resume)


def _plan(session: Session, task: TaskData) -> DistilRNN:
    return empty_student(session, task, plan_config(session.settings.base).vocab_size)


def _build(session: Session, task: TaskData) -> tuple[Job, list[str]]:
    folder = resolve_base(session.settings.base)
    training = session.settings.student_training
    train = augmented(session, task) if session.settings.train_scratch.augmented else task.train
    # making sentences may draw; the student must start as a taught one
    seed_everything(session.settings.seed)
    job, lines = student_job(
        session,
        task,
        backend=SentenceTokenizer.from_folder(folder),
        max_tokens=read_config(folder).num_positions,
        objective=supervised(line(training.lm_weight, training.lm_weight_end)),
        train=train,
        word_vectors=lambda: load_gpt(folder).transformer.wte.weight.detach().float().numpy(),
        facts={"augmented": len(train) - len(task.train)},
    )
    return job, lines
