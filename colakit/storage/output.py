"""Output folders: `--out` and `--resume`. Does not import torch, so that the command line starts fast."""

from __future__ import annotations

import itertools
import os
from enum import Enum
from pathlib import Path

from colakit.errors import ColakitError

RUNS = Path("runs")


class Resume(str, Enum):
    """Whether a training command continues the run in `--out`."""

    NEVER = "never"
    ALWAYS = "always"
    AUTO = "auto"


def check_writable(out: Path) -> None:
    """Raise `ColakitError` unless `out` is a writable folder or can be created."""
    try:
        if out.exists() and not out.is_dir():
            raise ColakitError(f"--out {out}: is a file; a folder is needed")
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:  # for example a name that is too long
        raise ColakitError(f"--out {out}: {error.strerror}", hint="Choose another folder.") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ColakitError(f"--out {out}: {nearest} is not writable", hint="Choose another folder.")


def claim_run_folder(command: str, out: Path | None) -> Path:
    """Create and return the folder of a new run: `out`, or the next free number in `runs/`."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColakitError(f"--out {out}: {error.strerror}", hint="Choose another folder.") from error
        return out
    for number in itertools.count(1):
        folder = RUNS / f"{command}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")
