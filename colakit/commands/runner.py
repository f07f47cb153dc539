"""How `finetune`, `distill` and `train-scratch` begin: processes, run folder, a resumed run's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from colakit.commands.fitting import Fit
from colakit.commands.job import Job
from colakit.commands.reporting import report
from colakit.commands.task import Task, load_task, show_plan
from colakit.console import Reporter
from colakit.context import Context
from colakit.engine.distributed import Processes, processes
from colakit.engine.randomness import seed_everything
from colakit.engine.runs import RunFolder
from colakit.errors import ColakitError
from colakit.loading import to_yaml

BuildJob = Callable[[Context, Task], tuple[Job, list[str]]]
BuildEmptyModel = Callable[[Context, Task], nn.Module]


def run_job(context: Context, build: BuildJob, plan: BuildEmptyModel, *, resume: bool) -> dict[str, Any]:
    """Build a job from the settings and train it; return the run's summary, or in a dry run, the plan.

    Args:
        build: returns the job and, for people, lines on what it will do.
        plan: returns the model without its weights; it reads no more than it must.
    """
    if resume:
        _check_resumable(context)
    else:
        context.check_new_run()
    if context.dry_run:
        task = load_task(context)
        return show_plan(context, task, plan(context, task))
    with processes(context.compute) as group:
        if not group.is_main:
            context.reporter = Reporter(quiet=True, results_on_stderr=True)
        task = load_task(context)
        seed_everything(context.settings.seed)
        job, lines = build(context, task)
        run = RunFolder(_agreed_folder(context, group, resume=resume))
        for line in (*lines, f"compute: {context.compute}", f"run folder: {run.path}"):
            context.reporter.say(line)
        summary = _train(job, run, group, resume=resume)
    return {**summary, "run": str(run.path)}


def _train(job: Job, run: RunFolder, group: Processes, *, resume: bool) -> dict[str, Any]:
    fit = Fit(job, run, group)
    if resume:
        fit.restore()
        if run.summary.exists():
            job.context.reporter.say(f"{run.path} is finished; nothing to resume")
            return run.read_summary()
    elif group.is_main:
        run.create(to_yaml(job.context.settings), job.context.compute)
    group.barrier()
    fit.train()
    return report(job, run, fit) if group.is_main else {}


def _agreed_folder(context: Context, group: Processes, *, resume: bool) -> Path:
    """The main process chooses, and all agree."""
    if resume and context.out is not None:
        return context.out
    return Path(group.share(str(context.claim_run_folder()) if group.is_main else ""))


def _check_resumable(context: Context) -> None:
    if context.out is None:
        raise ColakitError("--resume: which run?", hint="Name its folder with --out.")
    RunFolder(context.out).require_state()
