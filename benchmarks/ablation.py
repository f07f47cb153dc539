"""What each part of distilling adds: every row of the table is one change, over several seeds.

    python benchmarks/ablation.py --config FILE --out DIR [--seeds 0 1 2 3 4] [--rows NAME…]

It tunes five teachers, each without a fifth of train, and a language model to sample from; trains the
students of every row; and prints the table, also written to DIR/ablation.md and DIR/ablation.json. Runs that
are finished are not run again. Epoch and threshold of each run come from its held-out slice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

FOLDS = 5
CONTROL = "train-scratch"
EDITS = {"transfer.size": 20, "transfer.sources": "{edits: 1}"}


@dataclass(frozen=True)
class Row:
    """One row of the table: a student that differs from others in its settings.

    Attributes:
        teachers: how many there are; 0 is the command `train-scratch`.
    """

    teachers: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def rows(language_model: Path, text: str | None) -> dict[str, Row]:
    """Return the rows by name.

    Args:
        language_model: base to sample sentences from.
        text: file of plain text; without it the rows that need one are left out.
    """
    mixed = {"transfer.size": 20, "transfer.language_model": str(language_model)}
    found = {
        CONTROL: Row(0),
        "train-scratch, augmented": Row(0, EDITS),
        "train-scratch, base's embeddings": Row(0, {"student.embeddings": "base"}),
        "one teacher, train alone": Row(1),
        "five teachers, out of fold, train alone": Row(FOLDS),
        "one teacher, edits": Row(1, EDITS),
        "five teachers, edits": Row(FOLDS, EDITS),
        "… and samples": Row(FOLDS, mixed | {"transfer.sources": "{edits: 1, samples: 1}"}),
        "… and samples, logit MSE": Row(
            FOLDS,
            mixed | {"transfer.sources": "{edits: 1, samples: 1}", "distill.soft_loss": "mse"},
        ),
        "five teachers, samples alone": Row(FOLDS, mixed | {"transfer.sources": "{samples: 1}"}),
        "five teachers, edits, kd_weight 1": Row(FOLDS, EDITS | {"distill.kd_weight": 1}),
        "five teachers, edits, temperature 1": Row(FOLDS, EDITS | {"distill.temperature": 1}),
        "five teachers, edits, hidden states": Row(FOLDS, EDITS | {"distill.hidden_weight": 1}),
        "five teachers, edits, base's embeddings": Row(FOLDS, EDITS | {"student.embeddings": "base"}),
        "five teachers, edits, 4,000 tokens": Row(FOLDS, EDITS | {"student.vocabulary": 4000}),
        "five teachers, edits, neighbours": Row(
            FOLDS,
            EDITS | {"student_training.lm_weight": 0.1, "student_training.lm_weight_end": 0},
        ),
        "five teachers, edits, GRU": Row(FOLDS, EDITS | {"student.cell": "gru"}),
        "five teachers, edits, plain RNN": Row(FOLDS, EDITS | {"student.cell": "rnn"}),
        "five teachers, edits, mean pooling": Row(FOLDS, EDITS | {"student.pooling": "mean"}),
    }
    if text is not None:
        plain = mixed | {"transfer.text": text, "transfer.sources": "{edits: 1, text: 1, text_edits: 1}"}
        found["five teachers, edits and text"] = Row(FOLDS, plain)
    return found


class Ablation:
    """The runs of one table, in one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.teachers = [self.out / "teachers" / str(number + 1) for number in range(FOLDS)]
        self.language_model = self.out / "language-model"

    def run(self) -> None:
        """Train what is missing, and print the table."""
        table = rows(self.language_model / "base", self.arguments.text)
        names = self.arguments.rows or list(table)
        if strangers := sorted(set(names) - set(table)):
            sys.exit(f"no row is called {strangers[0]!r}; there are: {', '.join(table)}")
        with ThreadPoolExecutor(self.arguments.jobs) as pool:
            first = [
                pool.submit(
                    self.colakit, "finetune", folder, number, {"finetune.leave_out": f"{number + 1}/{FOLDS}"}
                )
                for number, folder in enumerate(self.teachers)
            ]
            if any("transfer.language_model" in table[name].settings for name in names):
                settings = {"finetune.objective": "language_modelling", "finetune.epochs": 3}
                first.append(pool.submit(self.colakit, "finetune", self.language_model, 0, settings))
            for done in first:
                done.result()
            students = [
                pool.submit(self.student, name, table[name], seed)
                for seed in self.arguments.seeds
                for name in names
            ]
            for done in students:
                done.result()
        self.report(names)

    def student(self, name: str, row: Row, seed: int) -> None:
        """Train one student."""
        teachers = ",".join(map(str, self.teachers[: row.teachers]))
        settings = dict(row.settings) | ({"distill.teacher": teachers} if teachers else {})
        self.colakit("distill" if teachers else "train-scratch", self.folder(name, seed), seed, settings)

    def folder(self, name: str, seed: int) -> Path:
        """Return where a student lies."""
        return self.out / "".join(c if c.isalnum() else "-" for c in name) / str(seed)

    def colakit(self, command: str, out: Path, seed: int, settings: Mapping[str, Any]) -> None:
        """Train one model, unless it is there already."""
        words = [command, "--config", str(self.arguments.config), "--seed", str(seed), "--out", str(out)]
        assignments = [*self.arguments.assign, *(f"{key}={value}" for key, value in settings.items())]
        called(*words, *(word for text in assignments for word in ("--set", text)), "--resume", "auto")

    def report(self, names: Sequence[str]) -> None:
        """Print the table and write it."""
        students = {name: [self.folder(name, seed) for seed in self.arguments.seeds] for name in names}
        models = [*self.teachers, *(folder for folders in students.values() for folder in folders)]
        answer = json.loads(
            called("evaluate", "--config", str(self.arguments.config), "--json", *map(str, models))
        )
        lines = [
            "| | held out | ID dev | OOD dev | both | both, minus control |",
            "|---|---|---|---|---|---|",
        ]
        found = {}
        for name, folders in {"teachers": self.teachers, **students}.items():
            found[name] = {
                "holdout": [holdout_mcc(folder) for folder in folders],
                **{split: of_models(answer, split, folders) for split in ("id_dev", "ood_dev", "dev")},
                "minus_control": minus_control(answer, folders, students.get(CONTROL)),
            }
            cells = [spread(found[name][part]) for part in ("holdout", "id_dev", "ood_dev", "dev")]
            lines.append(f"| {name} | {' | '.join(cells)} | {found[name]['minus_control'] or '-'} |")
        text = "\n".join(lines) + "\n"
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "ablation.md").write_text(text, encoding="utf-8")
        (self.out / "ablation.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        print(text)


def called(*words: str) -> str:
    """Run colakit in a process of its own with one thread; return what it prints to stdout."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "colakit", *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        sys.exit(f"colakit {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def holdout_mcc(run: Path) -> float:
    """Return the MCC at the run's threshold on the slice that chose it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return float(summary["splits"]["holdout"]["mcc"])


def of_models(answer: Mapping[str, Any], split: str, folders: Sequence[Path]) -> list[float]:
    """Return the MCC of each run on a split."""
    found = {_tail(row["model"]): row["metrics"]["mcc"] for row in answer["splits"][split]["models"]}
    return [found[_tail(folder)] for folder in folders]


def minus_control(
    answer: Mapping[str, Any], ours: Sequence[Path], control: Sequence[Path] | None
) -> str | None:
    """Return the difference of MCC on both dev sets with its 95 % paired interval, as `evaluate` found it."""
    if control is None:
        return None
    comparison = answer["splits"]["dev"]
    group_of = {_tail(row["model"]): row["group"] for row in comparison["models"]}
    first, second = group_of[_tail(ours[0])], group_of[_tail(control[0])]
    for row in comparison["pairs"]:
        sign = {(first, second): 1, (second, first): -1}.get((row["first"], row["second"]))
        if sign:
            low, high = sorted((sign * row["mcc"]["low"], sign * row["mcc"]["high"]))
            return f"{sign * row['mcc']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return None


def _tail(folder: Path | str) -> tuple[str, ...]:
    return Path(folder).parts[-2:]


def spread(values: Sequence[float]) -> str:
    """Write mean ± standard deviation (n-1)."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/mini-students.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--text", help="plain text to draw sentences from")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--set", dest="assign", action="append", default=[], metavar="SECTION.KEY=VALUE")
    Ablation(parser.parse_args()).run()


if __name__ == "__main__":
    main()
