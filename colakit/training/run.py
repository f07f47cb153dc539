"""The run folder of a training: claiming, locking, resuming, and error messages that say how to continue."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colakit.config.yaml import MAX_CONFIG_BYTES
from colakit.errors import EXIT_FAILED, EXIT_INTERRUPTED, ColakitError
from colakit.runtime.distributed import Processes
from colakit.storage.checkpoints import Checkpoint, Checkpoints, read_checkpoint
from colakit.storage.output import RUNS, Resume, check_writable, claim_run_folder
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import Summary
from colakit.storage.run_set import RECORD
from colakit.utils.console import Reporter
from colakit.utils.documents import read_text
from colakit.utils.plan import Plan

BEFORE_FIRST_CHECKPOINT = {
    *("settings.yaml", "environment.json", "metrics.jsonl", "checkpoints", "run.lock"),
    *("tracking.json", "tensorboard", "wandb"),
}
"""Files of a run that has no checkpoint yet; `pretrain` adds `base`, written just before each checkpoint."""


@dataclass
class TrainingRun:
    """Where one training runs.

    Attributes:
        command: name of the command, for the folder's name and messages.
        out: `--out`; None takes the next free `runs/COMMAND-NNN`.
        resume: as given by the user.
        group: the processes that train together.
        reporter: console; quiet in all but the main process.
        folder: None until `open`.
        resuming: whether the run continues from a checkpoint (or is finished).
        locks: released at the end of the run.
        plan: stages of the command; None: the trainer makes it.
        title: of the training's progress bar.
        locked: whether this process holds the lock of `out`.
    """

    command: str
    out: Path | None
    resume: Resume
    group: Processes
    reporter: Reporter
    folder: RunFolder | None = None
    resuming: bool = False
    locks: ExitStack = field(default_factory=ExitStack)
    plan: Plan | None = None
    title: str = "training"
    locked: bool = False

    def open(self) -> RunFolder:
        """Return the run folder, the same in every process; create and lock it if it is new.

        Commands call it after building the job, so that a refused command leaves no folder.
        """
        if self.folder is None:
            if self.group.is_main and not self.locked:
                self.out = claim_run_folder(self.command, self.out)
                self.lock()
            path, self.resuming = self.group.broadcast((str(self.out), self.resuming))
            self.folder = RunFolder(Path(path))
            self.reporter.say(f"run folder: {self.folder.path}")
        return self.folder

    @property
    def is_finished(self) -> bool:
        """Whether the run in `out` has a summary: nothing is left to train."""
        return self.resuming and self.out is not None and RunFolder(self.out).summary.is_file()

    def has_finished_with(self, settings_yaml: str) -> bool:
        """Whether the run in `out` is finished and was started with these settings."""
        if not self.is_finished or self.out is None:
            return False
        settings = RunFolder(self.out).settings
        return settings.is_file() and read_text(settings, MAX_CONFIG_BYTES) == settings_yaml

    def finished_summary(self) -> dict[str, Any]:
        """Print that nothing is left to train; return the summary of the run in `out`."""
        assert self.out is not None
        self.reporter.say(f"{self.out} is finished; nothing to resume")
        summary = RunFolder(self.out).read_summary(Summary).model_dump(exclude_unset=True)
        return {**summary, "run": str(self.out)}

    def lock(self) -> None:
        """Lock the folder, and check again whether there is a run to resume: another process may have run."""
        assert self.out is not None
        self.locks.enter_context(RunFolder(self.out).lock.held())
        self.locked = True
        self.resuming = is_resuming(self.out, self.resume)

    def checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, the same in every process; a finished run may have none."""
        assert self.folder is not None
        chosen = None
        if self.group.is_main and (self.folder.checkpoints.paths() or not self.folder.summary.is_file()):
            chosen = self.folder.checkpoints.load(self.reporter.warn)
        path = self.group.broadcast(None if chosen is None else str(chosen.path))
        return chosen if chosen is not None or path is None else read_checkpoint(Path(path))

    def how_to_continue(self) -> str:
        """Return the hint for a run that ended before its last step."""
        assert self.folder is not None
        resume = "--resume" if self.folder.checkpoints.paths() else "--resume auto"
        return f"Continue: colakit {self.command} {resume} --out {shlex.quote(str(self.folder.path))}"


@contextmanager
def training_run(
    command: str, out: Path | None, resume: Resume, *, group: Processes, reporter: Reporter
) -> Iterator[TrainingRun]:
    """Yield the run of a training command; errors after `open` say what is saved and how to continue.

    Raises:
        ColakitError: if the run to resume does not exist, or a run cannot start in `out`.
    """
    run = TrainingRun(command, out, resume, group, reporter, resuming=is_resuming(out, resume))
    with run.locks:
        if out is not None and out.is_dir() and group.is_main:  # before the work of building the job
            run.lock()
        try:
            yield run
        except (KeyboardInterrupt, OSError, ColakitError) as error:
            if run.folder is None or isinstance(error, BrokenPipeError):
                raise
            hint, exit_code = run.how_to_continue(), getattr(error, "exit_code", EXIT_FAILED)
            if isinstance(error, KeyboardInterrupt):
                message, exit_code = "at once", getattr(error, "exit_code", EXIT_INTERRUPTED)
            elif isinstance(error, OSError):
                message = f"{error.filename or run.folder.path}: {error.strerror or error}"
                hint = f"Free disk space or repair the folder. {hint}"
            elif exit_code == EXIT_FAILED:
                message, hint = error.message, error.hint or ""
            else:
                raise
            message = f"{message}; {run.folder.describe_checkpoint()}"
            raise ColakitError(message, hint=hint, exit_code=exit_code) from error


def is_resuming(out: Path | None, resume: Resume) -> bool:
    """Return whether a command continues the run in `out` (True) or starts one (False).

    Raises:
        ColakitError: if the run to resume does not exist, or a run cannot start in `out`.
    """
    if resume is not Resume.NEVER:
        if out is None:
            raise ColakitError(
                f"--resume{' auto' if resume is Resume.AUTO else ''}: no run folder given",
                hint="Name its folder with --out.",
            )
        check_writable(out)
        run = RunFolder(out)
        if run.checkpoints.paths() or run.summary.is_file():
            return True
        if resume is Resume.ALWAYS:
            raise run.checkpoints.missing_error()
    check_new_run(out)
    return False


def check_new_run(out: Path | None, hint: str | None = None) -> None:
    """Raise `ColakitError` unless a run can start in `out` (`runs/` if None)."""
    check_writable(out or RUNS)
    if out is not None and out.is_dir() and not _is_free(out):
        is_finished = RunFolder(out).summary.is_file()
        may_resume = Checkpoints(out / "checkpoints").paths() or (out / RECORD).is_file()
        more = ", or continue its run with --resume" if may_resume and not is_finished else ""
        raise ColakitError(
            f"--out {out}: folder is not empty{': its run is finished' if is_finished else ''}",
            hint=hint or f"Choose another folder{more}.",
        )


def _is_free(folder: Path) -> bool:
    """Return whether a folder is empty, except for the files of a run that has no checkpoint yet."""
    names = {entry.name for entry in folder.iterdir()}
    names = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    has_started = {"settings.yaml", "environment.json"} <= names
    allowed = BEFORE_FIRST_CHECKPOINT | ({"base"} if has_started else set())
    return names <= allowed and not Checkpoints(folder / "checkpoints").paths()
