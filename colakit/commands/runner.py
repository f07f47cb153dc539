"""How a training command begins: processes, run folder, a resumed run's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from colakit.commands.classifying import ClassifierFit
from colakit.commands.fitting import Fit, how_to_continue
from colakit.commands.job import Job
from colakit.commands.reporting import report
from colakit.commands.task import Task, load_task, show_plan
from colakit.console import Reporter
from colakit.context import Context, Resume
from colakit.engine.checkpoint import Checkpoint, read_checkpoint
from colakit.engine.distributed import Processes, processes
from colakit.engine.randomness import seed_everything
from colakit.engine.runs import RunFolder
from colakit.engine.stopping import stop_requests
from colakit.errors import EXIT_FAILED, EXIT_INTERRUPTED, ColakitError
from colakit.yaml_text import to_yaml

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
    resume: Resume,
    load: Callable[[Context], Task] = load_task,
) -> dict[str, Any]:
    """Build a classifier's job from the settings and train it; return the summary, or a dry run's plan.

    Args:
        build: returns the job and, for people, lines on what it will do.
        plan: returns the model without its weights; it reads no more than it must.
        load: returns the corpus, cut.
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
            finish=lambda run, fit: report(job, run, fit),
        )

    return run_training(context, prepare, show, resume=resume)


def run_training(
    context: Context, prepare: Callable[[], Training], show: Callable[[], dict[str, Any]], *, resume: Resume
) -> dict[str, Any]:
    """Train what `prepare` returns, in every process; in a dry run, return what `show` returns."""
    resuming = context.is_resuming(resume)
    if context.dry_run:
        return show()
    with processes(context.compute) as group, ExitStack() as held:
        if not group.is_main:
            context.reporter = Reporter(quiet=True, results_on_stderr=True)
        there = context.out is not None and context.out.is_dir()
        if there and group.is_main:  # before the long work of preparing
            resuming = _alone(context, held, resume)
        training = prepare()
        if not there and group.is_main:  # not before it, so that what is refused leaves no folder
            context.out = context.claim_run_folder()
            resuming = _alone(context, held, resume)
        folder, resuming = group.share((str(context.out), resuming))
        run = RunFolder(Path(folder))
        for line in (*training.lines, f"run folder: {run.path}"):
            context.reporter.say(line)
        with _honest_ending(context, run):
            summary = train_run(context, training, run, group, resuming=resuming)
    return {**summary, "run": str(run.path)}


def _alone(context: Context, held: ExitStack, resume: Resume) -> bool:
    """Lock the run folder, and look again: whoever was there before may have changed what there is to do."""
    assert context.out is not None
    held.enter_context(RunFolder(context.out).lock.held())
    return context.is_resuming(resume)


def train_run(
    context: Context, training: Training, run: RunFolder, group: Processes, *, resuming: bool
) -> dict[str, Any]:
    """Train in a locked run folder, from its last checkpoint or from the start; return the summary."""
    fit = training.fit(run, group)
    if resuming:
        checkpoint = _shared_checkpoint(context, run, group)
        if group.share(run.summary.is_file()):
            if checkpoint is not None:
                fit.require_identity(checkpoint.state["identity"])
                fit.require_same_end(checkpoint.state["progress"])
            context.reporter.say(f"{run.path} is finished; nothing to resume")
            return run.read_summary()
        assert checkpoint is not None, "there is no summary, hence a checkpoint"
        fit.restore(checkpoint)
        if group.is_main:
            run.tidy()
            # its process may have died before it had removed the oldest
            run.checkpoints.keep(checkpoint.path)
    elif group.is_main:
        run.create(to_yaml(context.settings), fit.compute)
    context.reporter.say(f"compute: {fit.compute}")
    group.barrier()
    fit.train()
    with stop_requests(at_once=True):
        return training.finish(run, fit) if group.is_main else {}


def _shared_checkpoint(context: Context, run: RunFolder, group: Processes) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same in every process; None for a finished run without any."""
    chosen = None
    if group.is_main and (run.checkpoints.found() or not run.summary.is_file()):
        chosen = run.checkpoints.load(context.reporter.warn)
    path = group.share(None if chosen is None else str(chosen.path))
    return chosen if chosen is not None or path is None else read_checkpoint(Path(path))


@contextmanager
def _honest_ending(context: Context, run: RunFolder) -> Iterator[None]:
    """Where a run ends early, say where the good state lies and how to continue."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise ColakitError(
            f"left at once; {run.standing()}",
            hint=how_to_continue(context.command, run),
            exit_code=getattr(stop, "exit_code", EXIT_INTERRUPTED),
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ColakitError(
            f"{error.filename or run.path}: {error.strerror or error}; {run.standing()}",
            hint=f"Make room, or mend it. {how_to_continue(context.command, run)}",
            exit_code=EXIT_FAILED,
        ) from error
    except ColakitError as error:
        if error.exit_code != EXIT_FAILED:
            raise
        message = f"{error.message}; {run.standing()}"
        raise ColakitError(message, hint=error.hint, exit_code=EXIT_FAILED) from error
