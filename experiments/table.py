"""Experiment tables: run colakit with several seeds for each row, and compare the rows.

Used by `ablation.py` and `base.py`. Every run is a process of its own with one thread. Finished runs are
skipped, interrupted ones are resumed. Epoch and threshold of a run are chosen on its validation split.
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
    "| | seeds | val | ID dev | OOD dev | both | both, minus control |",
    "|---|---|---|---|---|---|---|",
]


@dataclass(frozen=True)
class Row:
    """One experiment, run with several seeds.

    Attributes:
        command: of colakit.
        settings: by name, on top of the table's config file.
        teachers: run folders of a student's teachers.
    """

    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Table:
    """The runs of one table, in one folder.

    Attributes:
        config: settings file of all rows.
        assignments: further settings, as `section.key=value`.
        jobs: number of parallel runs.
    """

    config: Path
    out: Path
    seeds: Sequence[int]
    assignments: Sequence[str]
    jobs: int

    def run_folder(self, name: str, seed: int) -> Path:
        """Return the run folder of a row and seed."""
        return self.out / "".join(c if c.isalnum() else "-" for c in name) / str(seed)

    def train(self, rows: Mapping[str, Row]) -> dict[str, list[Path]]:
        """Run all rows, seed by seed; return each row's run folders."""
        self.run(
            (row, self.run_folder(name, seed), seed) for seed in self.seeds for name, row in rows.items()
        )
        return {name: [self.run_folder(name, seed) for seed in self.seeds] for name in rows}

    def run(self, runs: Iterable[tuple[Row, Path, int]]) -> None:
        """Run rows, each into a folder with a seed; finished runs exit at once."""
        run_colakit([self.command_line(*run) for run in runs], self.jobs)

    def command_line(self, row: Row, out: Path, seed: int) -> tuple[str, ...]:
        """Return the arguments of one run."""
        settings = dict(row.settings)
        if row.teachers:
            settings["distill.teacher"] = ",".join(map(str, row.teachers))
        assignments = [*self.assignments, *(f"{key}={value}" for key, value in settings.items())]
        words = [row.command, "--config", str(self.config), "--seed", str(seed), "--out", str(out)]
        return (*words, *(word for text in assignments for word in ("--set", text)), "--resume", "auto")

    def report(self, groups: Mapping[str, Sequence[Path]], control: str | None, name: str) -> None:
        """Evaluate the run folders of each row; print the table, and write NAME.md and NAME.json.

        Args:
            control: row that the others are compared with; None leaves the last column empty.
        """
        folders = [folder for group in groups.values() for folder in group]
        (output,) = run_colakit([("evaluate", "--config", str(self.config), "--json", *map(str, folders))])
        splits = json.loads(output)["splits"]
        against = groups[control] if control is not None else None
        results = {row: _results(splits, folders, group, against) for row, group in groups.items()}
        text = "\n".join([*HEADER, *(_line(row, result) for row, result in results.items())]) + "\n"
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}.md").write_text(text, encoding="utf-8")
        (self.out / f"{name}.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
        print(text)


def run_colakit(commands: Sequence[tuple[str, ...]], jobs: int = 1) -> list[str]:
    """Run colakit's commands in processes with one thread each; return their standard output.

    Raises:
        SystemExit: if one fails.
    """
    children = [Child(f"colakit {' '.join(words)}", words) for words in commands]
    workers = [{"OMP_NUM_THREADS": "1", **os.environ}] * jobs
    try:
        return run_side_by_side(children, workers, log=lambda name, line: None)
    except ColakitError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}".rstrip())


def _results(
    splits: Mapping[str, Any], folders: Sequence[Path], group: Sequence[Path], control: Sequence[Path] | None
) -> dict[str, Any]:
    """Return the MCC of a group's runs on each split, and the difference to the control."""
    mcc = {}
    for split in SPLITS:
        models = dict(zip(folders, splits[split]["models"], strict=True))
        mcc[split] = [models[folder]["metrics"]["mcc"] for folder in group]
    difference = mcc_minus_control(splits["dev"], folders, group, control)
    return {"val": [val_mcc(folder) for folder in group], **mcc, "minus_control": difference}


def _line(name: str, result: Mapping[str, Any]) -> str:
    cells = [mean_and_deviation(result[part]) for part in ("val", *SPLITS)]
    return f"| {name} | {len(result['val'])} | {' | '.join(cells)} | {result['minus_control'] or '-'} |"


def val_mcc(run: Path) -> float:
    """Return the MCC on the run's validation split, at the threshold chosen there."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return float(summary["splits"]["val"]["mcc"])


def mcc_minus_control(
    dev: Mapping[str, Any], folders: Sequence[Path], group: Sequence[Path], control: Sequence[Path] | None
) -> str | None:
    """Return the difference of MCC with its 95 % paired bootstrap interval, as computed by `evaluate`.

    Args:
        dev: what `evaluate --json` reports for the split `dev`.
        folders: the evaluated run folders, in order.

    Returns:
        None without a control, or if the runs are not seeds of one experiment.
    """
    models = dict(zip(folders, dev["models"], strict=True))
    names = {models[folder]["group"] for folder in group}
    if control is None or len(names) > 1:
        return None
    first, second = names.pop(), models[control[0]]["group"]
    for pair in dev["pairs"]:
        sign = {(first, second): 1, (second, first): -1}.get((pair["first"], pair["second"]))
        if sign:
            low, high = sorted((sign * pair["mcc"]["low"], sign * pair["mcc"]["high"]))
            return f"{sign * pair['mcc']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return None


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format mean ± sample standard deviation."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def make_parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """Return the parser of a table's script, described by the first line of its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/builtin-cola.yaml"))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", help="names of the rows to run; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs, with one thread each")
    parser.add_argument("--set", dest="assign", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def make_table(arguments: argparse.Namespace) -> Table:
    """Return the table that the command line describes."""
    return Table(arguments.config, arguments.out, arguments.seeds, arguments.assign, arguments.jobs)


def select_rows(rows: Mapping[str, Row], names: Sequence[str] | None) -> dict[str, Row]:
    """Return the named rows, or all.

    Raises:
        SystemExit: if a name is unknown.
    """
    if unknown := sorted(set(names or ()) - set(rows)):
        sys.exit(f"unknown row {unknown[0]!r}; choose from: {', '.join(rows)}")
    return {name: row for name, row in rows.items() if not names or name in names}
