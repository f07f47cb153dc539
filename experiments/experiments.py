"""Tables of experiments: rows of commands and settings, several seeds each, run once and compared.

Every run is a process of its own with one thread; runs that are finished are not run again, and those that
were interrupted go on. Epoch and threshold of each come from its held-out slice.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from colakit.errors import ColakitError
from colakit.runtime.subprocesses import Child, run_side_by_side

SPLITS = ("id_dev", "ood_dev", "dev")
HEADER = [
    "| | seeds | held out | ID dev | OOD dev | both | both, minus control |",
    "|---|---|---|---|---|---|---|",
]


@dataclass(frozen=True)
class Row:
    """One row of a table: an experiment, run with several seeds.

    Attributes:
        command: of colakit's.
        settings: what it sets besides the table's configuration.
        teachers: whom a student asks, run folders.
    """

    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[Path, ...] = ()


class Experiments:
    """The runs of one table, in one folder.

    Args:
        config: settings that all rows share.
        assign: more of them, as `section.key=value`.
        jobs: runs side by side.
    """

    def __init__(
        self, config: Path, out: Path, seeds: Sequence[int], assign: Sequence[str], jobs: int
    ) -> None:
        self.config, self.out, self.seeds, self.assign, self.jobs = config, out, seeds, assign, jobs

    def folder(self, name: str, seed: int) -> Path:
        """Return where a row's run lies."""
        return self.out / "".join(c if c.isalnum() else "-" for c in name) / str(seed)

    def train(self, rows: Mapping[str, Row]) -> dict[str, list[Path]]:
        """Run what is missing, seed by seed; return each row's run folders."""
        self.run_all(
            (row, self.folder(name, seed), seed) for seed in self.seeds for name, row in rows.items()
        )
        return {name: [self.folder(name, seed) for seed in self.seeds] for name in rows}

    def run_all(self, runs: Iterable[tuple[Row, Path, int]]) -> None:
        """Run rows with a seed each, some side by side; those that have been run end at once."""
        called([self.words(*one) for one in runs], self.jobs)

    def words(self, row: Row, out: Path, seed: int) -> tuple[str, ...]:
        """Return the command of one row with one seed."""
        settings = dict(row.settings)
        if row.teachers:
            settings["distill.teacher"] = ",".join(map(str, row.teachers))
        assigned = [*self.assign, *(f"{key}={value}" for key, value in settings.items())]
        words = [row.command, "--config", str(self.config), "--seed", str(seed), "--out", str(out)]
        return (*words, *(word for text in assigned for word in ("--set", text)), "--resume", "auto")

    def report(self, groups: Mapping[str, Sequence[Path]], control: str | None, name: str) -> None:
        """Compare the run folders of each row; print the table, and write NAME.md and NAME.json.

        Args:
            control: the row that the others are compared with; None leaves that column empty.
        """
        folders = [folder for group in groups.values() for folder in group]
        words = ("evaluate", "--config", str(self.config), "--json", *map(str, folders))
        (told,) = called([words])
        answer = Answer(json.loads(told), folders)
        against = groups[control] if control is not None else None
        found = {row: _figures(answer, group, against) for row, group in groups.items()}
        text = "\n".join([*HEADER, *(_line(row, figures) for row, figures in found.items())]) + "\n"
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}.md").write_text(text, encoding="utf-8")
        (self.out / f"{name}.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        print(text)


@dataclass(frozen=True)
class Answer:
    """What `evaluate --json` says of runs, in the order in which they were named."""

    said: Mapping[str, Any]
    folders: Sequence[Path]

    def rows(self, split: str) -> dict[Path, Mapping[str, Any]]:
        """Return what is said of each run on a split."""
        return dict(zip(self.folders, self.said["splits"][split]["models"], strict=True))


def _figures(answer: Answer, folders: Sequence[Path], control: Sequence[Path] | None) -> dict[str, Any]:
    mcc = {}
    for split in SPLITS:
        rows = answer.rows(split)
        mcc[split] = [rows[folder]["metrics"]["mcc"] for folder in folders]
    return {
        "val": [val_mcc(folder) for folder in folders],
        **mcc,
        "minus_control": minus_control(answer, folders, control),
    }


def _line(name: str, figures: Mapping[str, Any]) -> str:
    cells = [spread(figures[part]) for part in ("val", *SPLITS)]
    count = len(figures["val"])
    return f"| {name} | {count} | {' | '.join(cells)} | {figures['minus_control'] or '-'} |"


def called(commands: Sequence[tuple[str, ...]], jobs: int = 1) -> list[str]:
    """Run commands of colakit, each in a process with one thread; return what they print to stdout."""
    children = [Child(f"colakit {' '.join(words)}", words) for words in commands]
    workers = [{"OMP_NUM_THREADS": "1", **os.environ}] * jobs
    try:
        return run_side_by_side(children, workers, log=lambda name, line: None)
    except ColakitError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}".rstrip())


def val_mcc(run: Path) -> float:
    """Return the MCC at the run's threshold on the slice that chose it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return float(summary["splits"]["val"]["mcc"])


def minus_control(answer: Answer, ours: Sequence[Path], control: Sequence[Path] | None) -> str | None:
    """Return the difference of MCC on both dev sets with its 95 % paired interval, as `evaluate` found it.

    None where there is no control, or the runs are not seeds of one experiment.
    """
    rows = answer.rows("dev")
    groups = {rows[folder]["group"] for folder in ours}
    if control is None or len(groups) > 1:
        return None
    first, second = groups.pop(), rows[control[0]]["group"]
    for row in answer.said["splits"]["dev"]["pairs"]:
        sign = {(first, second): 1, (second, first): -1}.get((row["first"], row["second"]))
        if sign:
            low, high = sorted((sign * row["mcc"]["low"], sign * row["mcc"]["high"]))
            return f"{sign * row['mcc']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return None


def spread(values: Sequence[float]) -> str:
    """Write mean ± standard deviation (n-1)."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def arguments(description: str, config: str, out: str) -> argparse.ArgumentParser:
    """Return the parser of what every table is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path(config))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--set", dest="assign", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def chosen(table: Mapping[str, Row], names: Sequence[str] | None) -> dict[str, Row]:
    """Return the rows that are named, or all."""
    if strangers := sorted(set(names or ()) - set(table)):
        sys.exit(f"no row is called {strangers[0]!r}; there are: {', '.join(table)}")
    return {name: row for name, row in table.items() if not names or name in names}
