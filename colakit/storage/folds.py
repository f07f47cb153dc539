"""A cross-validation folder: k runs, each fine-tuned without one fold of train.

folds.json         k
settings.yaml      settings shared by the runs
fold-1, fold-2 …   run folders; their `finetune.leave_out` is 1/k, 2/k …
summary.json       metrics of all runs, and out-of-fold metrics over train
predictions.json   out-of-fold predictions
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from colakit.errors import ColakitError
from colakit.storage.run_folder import RunFolder
from colakit.utils.documents import Document, read_document
from colakit.utils.files import write_json, write_text

RECORD = "folds.json"


class FoldsRecord(Document):
    """The content of folds.json."""

    folds: Annotated[int, Field(ge=2, le=1000)]


class FoldsFolder:
    """A folder of `count` runs with the same settings except `leave_out`."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.shared = RunFolder(path)  # settings, lock, summary and predictions of all runs

    def create(self, settings_yaml: str) -> None:
        """Write the settings and the number of folds."""
        self.shared.clean_up()
        write_text(self.shared.settings, settings_yaml)
        write_json(self.path / RECORD, {"folds": self.count})

    def fold_spec(self, number: int) -> str:
        """Return `leave_out` of run `number` (from 1), for example 2/5."""
        return f"{number}/{self.count}"

    def run(self, number: int) -> RunFolder:
        """Return run `number` (from 1)."""
        return RunFolder(self.path / f"fold-{number}")

    def numbers(self) -> range:
        """Return 1 to k."""
        return range(1, self.count + 1)

    def unfinished(self) -> list[int]:
        """Return the numbers of the runs that are not finished."""
        return [number for number in self.numbers() if not self.run(number).summary.is_file()]

    def resume_hint(self) -> str:
        """Return the command that trains the missing runs, as a hint."""
        return f"Continue: colakit finetune --folds {self.count} --resume --out {shlex.quote(str(self.path))}"


def open_folds(path: Path) -> FoldsFolder | None:
    """Return the cross-validation folder at `path`, finished or not; None if it is not one.

    Raises:
        ColakitError: if its folds.json is broken.
    """
    record = path.expanduser() / RECORD
    if not record.is_file():
        return None
    count = read_document(record, FoldsRecord, hint="Pass its runs one by one.").folds
    return FoldsFolder(path.expanduser(), count)


def expand_folds(models: Sequence[str]) -> list[str]:
    """Return `models` with each cross-validation folder replaced by its runs.

    Raises:
        ColakitError: if one of those runs is not finished.
    """
    expanded: list[str] = []
    for model in models:
        folds = open_folds(Path(model))
        if folds is None:
            expanded.append(model)
            continue
        if missing := folds.unfinished():
            raise ColakitError(
                f"{model}: {folds.run(missing[0]).path.name} of {folds.count} is not finished",
                hint=folds.resume_hint(),
            )
        expanded += [str(folds.run(number).path) for number in folds.numbers()]
    return expanded
