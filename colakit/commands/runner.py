"""How a training command begins: processes, run folder, a resumed run's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from colakit.commands.classifying import ClassifierFit
from colakit.commands.fitting import Fit
from colakit.commands.job import Job
from colakit.commands.reporting import report
from colakit.commands.task import Task, load_task, show_plan
from colakit.console import Reporter
from colakit.context import Context
from colakit.engine.device import keep_freed_memory
from colakit.engine.distributed import Processes, processes
from colakit.engine.randomness import seed_everything
from colakit.engine.runs import RunFolder
from colakit.errors import ColakitError
from colakit.loading import to_yaml

BuildJob = Callable[[Context, Task], tuple[Job, list[str]]]
BuildEmptyModel = Callable[[Context, Task], nn.Module]


@dataclass
class Training:
    """A training that is ready to begin.

    Attributes:
        lines: for people, what it will do.
        fit: makes the fit, given the run folder and the processes.
        finish: writes and prints the result of a fit that has ended, and returns the summary.
    """

    lines: list[str]
    fit: Callable[[RunFolder, Processes], Fit]
    finish: Callable[[RunFolder, Any], dict[str, Any]]


def run_job(
    context: Context,
    build: BuildJob,
    plan: BuildEmptyModel,
    *,
    resume: bool,
    load: Callable[[Context], Task] = load_task,
    keep_base: bool = False,
) -> dict[str, Any]:
    """Build a classifier's job from the settings and train it; return the summary, or a dry run's plan.

    Args:
        build: returns the job and, for people, lines on what it will do.
        plan: returns the model without its weights; it reads no more than it must.
        load: returns the corpus, cut.
        keep_base: also write the tuned body as a base of its own.
    """

    def show() -> dict[str, Any]:
        task = load(context)
        return show_plan(context, task, plan(context, task))

    def prepare() -> Training:
        task = load(context)
        seed_everything(context.settings.seed)
        job, lines = build(context, task)
        return Training(
            lines,
            fit=lambda run, group: ClassifierFit(job, run, group),
            finish=lambda run, fit: report(job, run, fit, keep_base=keep_base),
        )

    return run_training(context, prepare, show, resume=resume)


def run_training(
    context: Context, prepare: Callable[[], Training], show: Callable[[], dict[str, Any]], *, resume: bool
) -> dict[str, Any]:
    """Train what `prepare` returns, in every process; in a dry run, return what `show` returns."""
    if resume:
        _check_resumable(context)
    else:
        context.check_new_run()
    if context.dry_run:
        return show()
    keep_freed_memory()
    with processes(context.compute) as group:
        if not group.is_main:
            context.reporter = Reporter(quiet=True, results_on_stderr=True)
        training = prepare()
        run = RunFolder(_agreed_folder(context, group, resume=resume))
        for line in (*training.lines, f"compute: {context.compute}", f"run folder: {run.path}"):
            context.reporter.say(line)
        summary = _train(context, training, run, group, resume=resume)
    return {**summary, "run": str(run.path)}


def _train(
    context: Context, training: Training, run: RunFolder, group: Processes, *, resume: bool
) -> dict[str, Any]:
    fit = training.fit(run, group)
    if resume:
        fit.restore()
        if run.summary.exists():
            context.reporter.say(f"{run.path} is finished; nothing to resume")
            return run.read_summary()
    elif group.is_main:
        run.create(to_yaml(context.settings), context.compute)
    group.barrier()
    fit.train()
    return training.finish(run, fit) if group.is_main else {}


def _agreed_folder(context: Context, group: Processes, *, resume: bool) -> Path:
    """The main process chooses, and all agree."""
    if resume and context.out is not None:
        return context.out
    return Path(group.share(str(context.claim_run_folder()) if group.is_main else ""))


def _check_resumable(context: Context) -> None:
    if context.out is None:
        raise ColakitError("--resume: which run?", hint="Name its folder with --out.")
    RunFolder(context.out).require_state()
