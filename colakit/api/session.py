"""What every command is given: its settings, where to write, and how to speak."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colakit.config.resolve import Resolved
from colakit.config.settings import DataSettings, Settings
from colakit.errors import ColakitError
from colakit.utils.console import Reporter

if TYPE_CHECKING:
    from colakit.data.corpora import Corpus
    from colakit.runtime.device import Compute
    from colakit.utils.array_cache import ArrayCache

RUNS = Path("runs")
BEFORE_A_CHECKPOINT = {
    "settings.yaml",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "run.lock",
}
"""What stands in the folder of a run that got no further."""
MODEL_BEFORE_A_CHECKPOINT = "base"  # pretrain writes one at every evaluation, just before it saves


class Resume(str, Enum):
    """Whether a training command continues the run in `--out`."""

    NEVER = "never"
    ALWAYS = "always"
    AUTO = "auto"


@dataclass
class Session:
    """One invocation of a command.

    Attributes:
        command: its name.
        resolved: validated settings and their origins.
        out: `--out`, if given.
        answer: what `--json` prints.
    """

    command: str
    resolved: Resolved
    reporter: Reporter
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    answer: dict[str, Any] | None = field(default=None)

    @property
    def settings(self) -> Settings:
        """The validated settings."""
        return self.resolved.settings

    @cached_property
    def cache_folder(self) -> Path:
        """Folder of downloads and computed arrays."""
        from colakit.utils.array_cache import default_cache

        return self.settings.cache_folder or default_cache()

    @cached_property
    def arrays(self) -> ArrayCache:
        """The cache of computed arrays, to which a dry run adds nothing."""
        from colakit.utils.array_cache import ArrayCache

        return ArrayCache(self.cache_folder, self.reporter.say, keeps=not self.dry_run)

    @cached_property
    def compute(self) -> Compute:
        """The device and precision to use."""
        from colakit.runtime.device import resolve_compute
        from colakit.runtime.distributed import local_rank

        return resolve_compute(self.settings.device, self.settings.precision, local_rank=local_rank())

    @cached_property
    def training_compute(self) -> Compute:
        """The same for training: kernels are compiled for it, where they are wanted and were not before."""
        return self.compute.with_kernels(self.settings.cpu_kernels, self.cache_folder / "native")

    def load_corpus(self, data: DataSettings | None = None) -> Corpus:
        """Return the corpus of `data`, by default the settings' own; a dry run downloads nothing."""
        from colakit.data.loading import load_dataset

        data = data or self.settings.data
        return load_dataset(data, self.cache_folder, self.reporter, may_fetch=not self.dry_run)

    def check_out(self) -> None:
        """Raise `ColakitError` unless `--out`, where it is given, is or can become a writable folder."""
        if self.out is not None:
            _check_writable(self.out)

    def check_new_run(self, hint: str = "Name another folder, or continue its run with --resume.") -> None:
        """Raise `ColakitError` unless a run can begin in `--out`, or in `runs` without it.

        Args:
            hint: what to do where the folder holds something.
        """
        _check_writable(self.out or RUNS)
        if self.out is not None and self.out.is_dir() and not _is_free(self.out):
            raise ColakitError(f"--out {self.out}: is not empty", hint=hint)

    def is_resuming(self, resume: Resume) -> bool:
        """Return whether there is a run to continue, so that a command begins one or goes on.

        Raises:
            ColakitError: if the run that is wanted is not there, or a run cannot begin in `--out`.
        """
        from colakit.storage.run_folder import RunFolder

        if resume is not Resume.NEVER:
            if self.out is None:
                raise ColakitError(
                    f"--resume{' auto' if resume is Resume.AUTO else ''}: which run?",
                    hint="Name its folder with --out.",
                )
            self.check_out()
            run = RunFolder(self.out)
            if run.checkpoints.found() or run.summary.is_file():
                return True
            if resume is Resume.ALWAYS:
                raise run.checkpoints.nothing_to_resume()
        self.check_new_run()
        return False

    def claim_run_folder(self) -> Path:
        """Make and return the folder of a new run: `--out`, or the next free number."""
        if self.out is not None:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ColakitError(
                    f"--out {self.out}: {error.strerror}", hint="Choose another folder."
                ) from error
            return self.out
        for number in itertools.count(1):
            folder = RUNS / f"{self.command}-{number:03d}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
        raise AssertionError("there is always a next number")


def _check_writable(out: Path) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise ColakitError(f"--out {out}: is a file; a folder is wanted")
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:  # a name too long, say
        raise ColakitError(f"--out {out}: {error.strerror}", hint="Choose another folder.") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ColakitError(f"--out {out}: {nearest} cannot be written to", hint="Choose another folder.")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, but for what a run leaves that died before its first checkpoint."""
    from colakit.storage.checkpoints import Checkpoints

    names = {entry.name for entry in folder.iterdir()}
    names = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    began = {"settings.yaml", "environment.json"} <= names
    allowed = BEFORE_A_CHECKPOINT | ({MODEL_BEFORE_A_CHECKPOINT} if began else set())
    return names <= allowed and not Checkpoints(folder / "checkpoints").found()


def saved_settings(run: Path) -> Path | None:
    """Return the resolved settings that a run folder keeps, if there are any."""
    path = run / "settings.yaml"
    return path if path.is_file() else None
