"""Out-of-fold results of `finetune --folds K`: each sentence of train, by the model that left it out.

A model applies its own threshold, chosen on the validation split, which is in no fold.

Shapes: N sentences of train, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.metrics import STATISTICS, Interval, Labels, measure, measure_with_intervals
from colakit.evaluation.tables import (
    COLUMNS,
    METRICS,
    Table,
    format_interval,
    percent,
    spread_table,
    spreads,
)

PARTS = {"val": "the validation split", "left_out": "the fold that it left out"}


@dataclass(frozen=True)
class FoldModel:
    """Outputs of the model that left out one fold, on its M sentences."""

    run: str  # name of its run folder
    leave_out: str  # its fold, written i/k
    summary: Mapping[str, Any]
    unseen: NDArray[np.bool_]  # (N,), sentences that it was not trained on
    logits: NDArray[np.float32]  # (M, C)
    predictions: Labels  # (M,)


def combine_folds(
    labels: Labels, folds: Sequence[FoldModel]
) -> tuple[dict[str, Any], Labels, NDArray[np.float32]]:
    """Return the results of every model and of all, and the (N,) predictions and (N, C) logits out of fold.

    Args:
        labels: (N,) of train.
        folds: each sentence is unseen by exactly one.
    """
    logits = np.zeros((len(labels), folds[0].logits.shape[1]), dtype=np.float32)
    predictions = np.zeros_like(labels)
    runs: list[dict[str, Any]] = []
    for fold in folds:
        index = fold.unseen
        logits[index], predictions[index] = fold.logits, fold.predictions
        metrics = measure(fold.logits, labels[index], fold.predictions)
        val = fold.summary["splits"]["val"]
        runs.append(
            {
                "run": fold.run,
                "leave_out": fold.leave_out,
                "threshold": fold.summary["threshold"],
                "seconds": fold.summary["seconds"],
                "val": {key: val[key] for key in ("num_examples", *METRICS)},
                "left_out": metrics.as_dict(),
            }
        )
    parts = {part: spreads([run[part] for run in runs]) for part in PARTS}
    metrics, intervals = measure_with_intervals(labels, logits, predictions)
    return {"runs": runs, **parts, "out_of_fold": {**metrics.as_dict(), **intervals}}, predictions, logits


def fold_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a folds summary: every model on val, on its fold, and all on train."""
    tables = [
        spread_table(
            f"{summary['command']}, seed {summary['seed']}: each model on {name}",
            "fold",
            {run["leave_out"]: run[part] for run in summary["runs"]},
            summary[part],
        )
        for part, name in PARTS.items()
    ]
    metrics = summary["out_of_fold"]
    accuracy, mcc = (Interval(metrics[key], *metrics[f"{key}_interval"]) for key in STATISTICS)
    row = [
        f"{metrics['num_examples']:,}",
        format_interval(accuracy, 100, 2),
        percent(metrics["majority_rate"]),
        format_interval(mcc, 1, 3),
        f"{metrics['loss']:.3f}",
    ]
    title = "out of fold: each sentence of train by the model that left it out; 95 % intervals"
    return [*tables, (title, [*COLUMNS, "loss"], [row])]
