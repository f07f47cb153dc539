"""`colakit train-scratch`: the student's architecture, start and budget, without a teacher."""

from __future__ import annotations

from typing import Any

from colakit.commands.job import Job
from colakit.commands.runner import run_job
from colakit.commands.students import empty_student, student_job
from colakit.commands.task import Task
from colakit.commands.transfer import augmented
from colakit.context import Context, Resume
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.objectives import line, supervised
from colakit.engine.randomness import seed_everything
from colakit.interop.gpt2 import load_gpt, plan_config, read_config, resolve_base
from colakit.models.rnn import DistilRNN


def run(context: Context, *, resume: Resume) -> dict[str, Any]:
    """Train the control and report it; of the base it takes the tokenizer, and as a rule the embedding."""
    return run_job(context, _build, _plan, resume=resume)


def _plan(context: Context, task: Task) -> DistilRNN:
    return empty_student(context, task, plan_config(context.settings.base).vocab_size)


def _build(context: Context, task: Task) -> tuple[Job, list[str]]:
    folder = resolve_base(context.settings.base)
    training = context.settings.student_training
    train = augmented(context, task) if context.settings.train_scratch.augmented else task.train
    # making sentences may draw; the student must start as a taught one
    seed_everything(context.settings.seed)
    job, lines = student_job(
        context,
        task,
        backend=SentenceTokenizer.from_folder(folder),
        max_tokens=read_config(folder).num_positions,
        objective=supervised(line(training.lm_weight, training.lm_weight_end)),
        train=train,
        word_vectors=lambda: load_gpt(folder).transformer.wte.weight.detach().float().numpy(),
        facts={"augmented": len(train) - len(task.train)},
    )
    return job, lines
