"""A folder of k runs, each tuned without one fold of train.

folds.json         how many there are
settings.yaml      what they share
fold-1, fold-2 …   the runs: folders like any other, `finetune.leave_out` being 1/k, 2/k …
summary.json       figures of all, and out-of-fold figures over train
predictions.json   what was answered out of fold
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from colakit.errors import ColakitError, first_line
from colakit.storage.run_folder import RunFolder
from colakit.utils.files import read_json, write_json, write_text

RECORD = "folds.json"
MAX_FOLDS = 1000


class FoldsFolder:
    """The files of k runs that share all but the fold they leave out.

    Args:
        count: k.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.shared = RunFolder(path)  # its settings, lock, summary and predictions

    def create(self, settings_yaml: str) -> None:
        """Write what is known before the first run."""
        self.shared.clean_up()
        write_text(self.shared.settings, settings_yaml)
        write_json(self.path / RECORD, {"folds": self.count})

    def fold_spec(self, number: int) -> str:
        """Return the fold that the run of this number, from 1, leaves out."""
        return f"{number}/{self.count}"

    def run(self, number: int) -> RunFolder:
        """Return the run of this number, from 1."""
        return RunFolder(self.path / f"fold-{number}")

    def numbers(self) -> range:
        """Return the numbers of the runs."""
        return range(1, self.count + 1)

    def unfinished(self) -> list[int]:
        """Return the numbers of the runs that have not come to their end."""
        return [number for number in self.numbers() if not self.run(number).summary.is_file()]

    def resume_hint(self) -> str:
        """Return the hint with the command that trains what is missing."""
        where = shlex.quote(str(self.path))
        return f"Continue: colakit finetune --folds {self.count} --resume --out {where}"


def open_folds(path: Path) -> FoldsFolder | None:
    """Return the runs that lie in a folder, finished or not; None where it is no folder of folds.

    Raises:
        ColakitError: if the file that counts them is broken.
    """
    record = path.expanduser() / RECORD
    if not record.is_file():
        return None
    try:
        count = read_json(record)["folds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ColakitError(
            f"{record}: cannot be read ({first_line(error)})", hint="Name the runs beside it one by one."
        ) from error
    if type(count) is not int or not 2 <= count <= MAX_FOLDS:
        raise ColakitError(f"{record}: `folds` must be a whole number from 2 to {MAX_FOLDS}")
    return FoldsFolder(path.expanduser(), count)


def expand_folds(models: Sequence[str]) -> list[str]:
    """Return the models, a folder of folds replaced by its runs.

    Raises:
        ColakitError: if one of those runs is not finished.
    """
    return [found for model in models for found in _expanded(model)]


def _expanded(model: str) -> list[str]:
    folds = open_folds(Path(model))
    if folds is None:
        return [model]
    if missing := folds.unfinished():
        raise ColakitError(
            f"{model}: {folds.run(missing[0]).path.name} of {folds.count} is not finished",
            hint=folds.resume_hint(),
        )
    return [str(folds.run(number).path) for number in folds.numbers()]
