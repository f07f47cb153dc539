"""A folder of runs that differ in one setting: their seed, or the fold of train that they leave out.

runs.json          the command and its seeds, or its number of folds
settings.yaml      settings shared by the runs
seed-0, seed-1 …   run folders; of folds fold-1, fold-2 …, whose `finetune.leave_out` is 1/k, 2/k …
summary.json       metrics of all runs, their mean and deviation; of folds also out-of-fold metrics over train
predictions.json   out-of-fold predictions (folds only)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from colakit.config.section import MAX_SEED
from colakit.errors import ColakitError
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import MAX_RUNS, RunsRecord
from colakit.utils.documents import library_errors, read_document
from colakit.utils.files import write_json, write_text

RECORD = "runs.json"

Kind = Literal["seeds", "folds"]


@dataclass(frozen=True)
class RunSet:
    """Runs of one command with the same settings except their seed or fold.

    Attributes:
        kind: what the runs differ in.
        values: the seeds; or the numbers of the folds, 1 to k.
    """

    path: Path
    command: str
    kind: Kind
    values: tuple[int, ...]

    @cached_property
    def shared(self) -> RunFolder:
        """Settings, lock, summary and predictions of all runs."""
        return RunFolder(self.path)

    def create(self, settings_yaml: str) -> None:
        """Write the settings, the command and the values; a summary of fewer runs is removed."""
        self.shared.clean_up()
        self.shared.summary.unlink(missing_ok=True)
        write_text(self.shared.settings, settings_yaml)
        record = len(self.values) if self.kind == "folds" else self.values
        write_json(self.path / RECORD, {"command": self.command, self.kind: record})

    def run(self, value: int) -> RunFolder:
        """Return the run of a seed or fold."""
        return RunFolder(self.path / f"{self.kind.removesuffix('s')}-{value}")

    def fold_spec(self, number: int) -> str:
        """Return `leave_out` of fold `number`, for example 2/5."""
        return f"{number}/{len(self.values)}"

    def assignment(self, value: int) -> str:
        """Return the setting in which a run differs, as `--set` takes it."""
        return f"seed={value}" if self.kind == "seeds" else f"finetune.leave_out={self.fold_spec(value)}"

    def unfinished(self) -> list[int]:
        """Return the seeds or folds whose runs are not finished."""
        return [value for value in self.values if not self.run(value).summary.is_file()]

    def flag(self) -> str:
        """Return the flag that trains these runs: `--seeds 0,1,2` or `--folds 5`."""
        values = [len(self.values)] if self.kind == "folds" else self.values
        return f"--{self.kind} {','.join(map(str, values))}"

    def resume_command(self) -> str:
        """Return the command that trains the missing runs."""
        return f"colakit {self.command} {self.flag()} --resume --out {shlex.quote(str(self.path))}"


def open_run_set(path: Path) -> RunSet | None:
    """Return the folder of runs at `path`, finished or not; None if it is not one.

    Raises:
        ColakitError: if its runs.json is broken.
    """
    record = path.expanduser() / RECORD
    if not record.is_file():
        return None
    hint = "Pass its runs one by one."
    content = read_document(record, RunsRecord, hint=hint)
    if content.folds is not None:
        return RunSet(path.expanduser(), content.command, "folds", tuple(range(1, content.folds + 1)))
    with library_errors(record, hint=hint):
        return RunSet(path.expanduser(), content.command, "seeds", check_seeds(content.seeds or ()))


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds.

    Raises:
        ValueError: if they are not different whole numbers that a run can have.
    """
    if any(type(seed) is not int or not 0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"seeds must be whole numbers from 0 to {MAX_SEED}")
    if len(set(seeds)) < len(seeds) or not 1 <= len(seeds) <= MAX_RUNS:
        raise ValueError(f"there must be 1 to {MAX_RUNS} seeds, each once")
    return tuple(seeds)


def expand_runs(models: Iterable[str], *, nested: bool = False) -> list[str]:
    """Return `models` with each folder of seeds or folds replaced by its runs.

    Args:
        nested: replace other folders, such as that of a demo, by the runs directly in them, by name.

    Raises:
        ColakitError: if a run of seeds or folds is not finished.
    """
    expanded: list[str] = []
    for model in models:
        runs = open_run_set(Path(model))
        if runs is None:
            inner = _runs_in(Path(model).expanduser()) if nested else []
            expanded += expand_runs(inner) if inner else [model]
            continue
        if missing := runs.unfinished():
            raise ColakitError(
                f"{model}: {runs.run(missing[0]).path.name} of {len(runs.values)} is not finished",
                hint=f"Continue: {runs.resume_command()}",
            )
        expanded += [str(runs.run(value).path) for value in runs.values]
    return expanded


def _runs_in(folder: Path) -> list[str]:
    """Return the run folders in a folder that is none itself, by name."""
    if not folder.is_dir() or RunFolder(folder).settings.is_file():
        return []
    return [str(path) for path in sorted(folder.iterdir()) if RunFolder(path).settings.is_file()]
