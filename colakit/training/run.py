"""How a training command begins: processes, run folder, a resumed run's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from colakit.api.session import Resume, Session
from colakit.config.yaml import to_yaml
from colakit.errors import EXIT_FAILED, EXIT_INTERRUPTED, ColakitError
from colakit.runtime.distributed import Processes, processes
from colakit.runtime.seeding import seed_everything
from colakit.runtime.signals import stop_requests
from colakit.storage.checkpoints import Checkpoint, read_checkpoint
from colakit.storage.run_folder import RunFolder
from colakit.training.classifier_trainer import ClassifierTrainer
from colakit.training.finish import report
from colakit.training.job import Job
from colakit.training.task_data import TaskData, load_task, show_plan
from colakit.training.trainer import Trainer, resume_hint
from colakit.utils.console import Reporter

BuildJob = Callable[[Session, TaskData], tuple[Job, list[str]]]
BuildEmptyModel = Callable[[Session, TaskData], nn.Module]


@dataclass
class Training:
    """A training that is ready to begin.

    Attributes:
        lines: for people, what it will do.
        fit: makes the fit, given the run folder and the processes.
        finish: writes and prints the result of a fit that has ended, and returns the summary.
    """

    lines: list[str]
    fit: Callable[[RunFolder, Processes], Trainer]
    finish: Callable[[RunFolder, Any], dict[str, Any]]


def run_job(
    session: Session,
    build: BuildJob,
    plan: BuildEmptyModel,
    *,
    resume: Resume,
    load: Callable[[Session], TaskData] = load_task,
) -> dict[str, Any]:
    """Build a classifier's job from the settings and train it; return the summary, or a dry run's plan.

    Args:
        build: returns the job and, for people, lines on what it will do.
        plan: returns the model without its weights; it reads no more than it must.
        load: returns the corpus, cut.
    """

    def show() -> dict[str, Any]:
        task = load(session)
        return show_plan(session, task, plan(session, task))

    def prepare() -> Training:
        task = load(session)
        seed_everything(session.settings.seed)
        job, lines = build(session, task)
        return Training(
            lines,
            fit=lambda run, group: ClassifierTrainer(job, run, group),
            finish=lambda run, fit: report(job, run, fit),
        )

    return run_training(session, prepare, show, resume=resume)


def run_training(
    session: Session, prepare: Callable[[], Training], show: Callable[[], dict[str, Any]], *, resume: Resume
) -> dict[str, Any]:
    """Train what `prepare` returns, in every process; in a dry run, return what `show` returns."""
    resuming = session.is_resuming(resume)
    if session.dry_run:
        return show()
    with processes(session.compute) as group, ExitStack() as held:
        if not group.is_main:
            session.reporter = Reporter(quiet=True, results_on_stderr=True)
        there = session.out is not None and session.out.is_dir()
        if there and group.is_main:  # before the long work of preparing
            resuming = _alone(session, held, resume)
        training = prepare()
        if not there and group.is_main:  # not before it, so that what is refused leaves no folder
            session.out = session.claim_run_folder()
            resuming = _alone(session, held, resume)
        folder, resuming = group.broadcast((str(session.out), resuming))
        run = RunFolder(Path(folder))
        for line in (*training.lines, f"run folder: {run.path}"):
            session.reporter.say(line)
        with _honest_ending(session, run):
            summary = train_run(session, training, run, group, resuming=resuming)
    return {**summary, "run": str(run.path)}


def _alone(session: Session, held: ExitStack, resume: Resume) -> bool:
    """Lock the run folder, and look again: whoever was there before may have changed what there is to do."""
    assert session.out is not None
    held.enter_context(RunFolder(session.out).lock.held())
    return session.is_resuming(resume)


def train_run(
    session: Session, training: Training, run: RunFolder, group: Processes, *, resuming: bool
) -> dict[str, Any]:
    """Train in a locked run folder, from its last checkpoint or from the start; return the summary."""
    fit = training.fit(run, group)
    if resuming:
        checkpoint = _shared_checkpoint(session, run, group)
        if group.broadcast(run.summary.is_file()):
            if checkpoint is not None:
                fit.require_identity(checkpoint.state["identity"])
                fit.require_same_end(checkpoint.state["progress"])
            session.reporter.say(f"{run.path} is finished; nothing to resume")
            return run.read_summary()
        assert checkpoint is not None, "there is no summary, hence a checkpoint"
        fit.restore(checkpoint)
        if group.is_main:
            run.clean_up()
            # its process may have died before it had removed the oldest
            run.checkpoints.prune(checkpoint.path)
    elif group.is_main:
        run.create(to_yaml(session.settings), fit.compute)
    session.reporter.say(f"compute: {fit.compute}")
    group.barrier()
    fit.train()
    with stop_requests(at_once=True):
        return training.finish(run, fit) if group.is_main else {}


def _shared_checkpoint(session: Session, run: RunFolder, group: Processes) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same in every process; None for a finished run without any."""
    chosen = None
    if group.is_main and (run.checkpoints.paths() or not run.summary.is_file()):
        chosen = run.checkpoints.load(session.reporter.warn)
    path = group.broadcast(None if chosen is None else str(chosen.path))
    return chosen if chosen is not None or path is None else read_checkpoint(Path(path))


@contextmanager
def _honest_ending(session: Session, run: RunFolder) -> Iterator[None]:
    """Where a run ends early, say where the good state lies and how to continue."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise ColakitError(
            f"left at once; {run.describe_checkpoint()}",
            hint=resume_hint(session.command, run),
            exit_code=getattr(stop, "exit_code", EXIT_INTERRUPTED),
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ColakitError(
            f"{error.filename or run.path}: {error.strerror or error}; {run.describe_checkpoint()}",
            hint=f"Make room, or mend it. {resume_hint(session.command, run)}",
            exit_code=EXIT_FAILED,
        ) from error
    except ColakitError as error:
        if error.exit_code != EXIT_FAILED:
            raise
        message = f"{error.message}; {run.describe_checkpoint()}"
        raise ColakitError(message, hint=error.hint, exit_code=EXIT_FAILED) from error
