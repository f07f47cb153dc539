"""Run folders as training writes them, with made-up metrics, for tests of figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colakit.data.corpora import Split
from colakit.reports.figures.curves import RunData
from colakit.storage.run_folder import Labels, RunFolder
from colakit.training.objectives import CROSS_ENTROPY

DEV = ("id_dev", "ood_dev")
MAJORITY_RATES = {"val": 0.6, "id_dev": 0.7, "ood_dev": 0.8}


def metrics(loss: float, accuracy: float, mcc: float, split: str = "val") -> dict[str, Any]:
    """Return the metrics of a split."""
    return {
        "num_examples": 40,
        "loss": loss,
        "accuracy": accuracy,
        "mcc": mcc,
        "majority_rate": MAJORITY_RATES[split],
    }


def run_data(
    name: str = "run",
    group: str = "experiment",
    *,
    seed: int = 0,
    train_loss: str = CROSS_ENTROPY,
    threshold: float | None = 0.4,
    dev: Sequence[str] = DEV,
    num_evaluations: int = 3,
    tracked: bool = False,
) -> RunData:
    """Return a run with a step record every 5 steps and an evaluation every 10."""
    numbers = range(1, num_evaluations + 1)
    evaluations: list[dict[str, Any]] = [
        {
            "event": "evaluation",
            "step": 10 * i,
            "epoch": i / 2,
            "train": {"loss": 2 / i, "accuracy": 0.3 + i / 10, "mcc": i / 10},
            "val": {
                **metrics(1 / i, 0.5 + i / 100, 0.2 + i / 100),
                "argmax": {"accuracy": 0.4 + i / 100, "mcc": 0.1 + i / 100},
            },
            **({"dev": {split: metrics(3 / i, 0.2, 0.3, split) for split in dev}} if tracked else {}),
        }
        for i in numbers
    ]
    steps = [{"event": "step", "step": 5 * i, "loss": 5 / i} for i in range(1, 2 * num_evaluations + 1)]
    summary = {
        "command": "train-scratch",
        "model": group,
        "experiment": group,
        "seed": seed,
        "labels": ["no", "yes"],
        "seconds": 1.0,
        "steps": 10 * num_evaluations,
        "max_steps": 10 * num_evaluations,
        "examples": 320 * num_evaluations,
        "best": {"step": 20, "epoch": 1.0},
        "train_loss": train_loss,
        "threshold": threshold,
        "splits": {split: metrics(0.5, 0.8, 0.5, split) for split in ("val", *dev)},
    }
    return RunData(name, group, steps, evaluations, summary)


def write_run(folder: Path, run: RunData) -> Path:
    """Write the files of a run that `plot` reads; the predictions are random."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(run.summary))
    records = [*run.steps, *run.evaluations]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    generator = np.random.default_rng(run.summary["seed"])
    write_predictions(
        RunFolder(folder),
        {split: (np.arange(40) % 3 // 2, generator.integers(2, size=40)) for split in run.summary["splits"]},
    )
    return folder


def write_predictions(folder: RunFolder, splits: Mapping[str, tuple[Labels, Labels]]) -> None:
    """Write (labels, predictions) of splits whose sentences are numbered."""
    folder.write_predictions(
        ["no", "yes"],
        {
            name: (
                Split(name, tuple(map(str, range(len(labels)))), labels),
                predictions,
                np.eye(2)[predictions],
            )
            for name, (labels, predictions) in splits.items()
        },
    )
