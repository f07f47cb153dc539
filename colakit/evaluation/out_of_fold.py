"""Out-of-fold metrics: every sentence of train, labelled by the model that was not trained on it.

A model labels at its own threshold, chosen on the validation split, which is in no fold.

Shapes: N sentences of train, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.metrics import Interval, Labels, Spread, measure, measure_with_intervals
from colakit.evaluation.tables import Table, interval, percent, spread

METRICS = ("accuracy", "majority_rate", "mcc")
COLUMNS = ("sentences", "accuracy %", "majority %", "MCC")
PARTS = {"val": "the validation split", "left_out": "the fold it was not trained on"}


@dataclass(frozen=True)
class FoldOutput:
    """Outputs of the model of one fold.

    Attributes:
        name: of its run folder.
        fold: the fold it was not trained on, `i/k`.
        summary: of its run.
        logits: (N, C).
        labels: (N,) predictions.
        unseen: (N,) True for sentences of its fold.
    """

    name: str
    fold: str
    summary: Mapping[str, Any]
    logits: NDArray[np.float32]
    labels: Labels
    unseen: NDArray[np.bool_]


def combine_folds(labels: Labels, folds: Sequence[FoldOutput]) -> tuple[dict[str, Any], Labels]:
    """Return metrics per fold and over all of train as plain data, and the (N,) out-of-fold predictions."""
    logits = np.zeros_like(folds[0].logits)
    predictions = np.zeros(len(labels), dtype=np.int64)
    runs: list[dict[str, Any]] = []
    for fold in folds:
        logits[fold.unseen], predictions[fold.unseen] = fold.logits[fold.unseen], fold.labels[fold.unseen]
        left_out = measure(fold.logits[fold.unseen], labels[fold.unseen], fold.labels[fold.unseen])
        val = fold.summary["splits"]["val"]
        runs.append(
            {
                "run": fold.name,
                "leave_out": fold.fold,
                "threshold": fold.summary["threshold"],
                "seconds": fold.summary["seconds"],
                "val": {key: val[key] for key in ("num_examples", *METRICS)},
                "left_out": left_out.as_dict(),
            }
        )
    metrics, intervals = measure_with_intervals(labels, logits, predictions)
    spreads = {
        part: {key: dict(vars(Spread.of([run[part][key] for run in runs]))) for key in METRICS}
        for part in PARTS
    }
    return {"runs": runs, **spreads, "out_of_fold": {**metrics.as_dict(), **intervals}}, predictions


def fold_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a summary with the entries of `combine_folds`."""
    formats = (("accuracy", 100, 2), ("majority_rate", 100, 2), ("mcc", 1, 3))
    tables: list[Table] = []
    for part, description in PARTS.items():
        rows = [
            [
                run["leave_out"],
                str(run[part]["num_examples"]),
                percent(run[part]["accuracy"]),
                percent(run[part]["majority_rate"]),
                f"{run[part]['mcc']:.3f}",
            ]
            for run in summary["runs"]
        ]
        means = [spread(Spread(**summary[part][key]), factor, digits) for key, factor, digits in formats]
        title = f"{summary['command']}, seed {summary['seed']}: each run on {description}"
        tables.append((title, ["fold", *COLUMNS], [*rows, ["mean ± sd", "", *means]]))
    total = summary["out_of_fold"]
    accuracy, mcc = (Interval(total[key], *total[f"{key}_interval"]) for key in ("accuracy", "mcc"))
    row = [
        str(total["num_examples"]),
        interval(accuracy, 100, 2),
        percent(total["majority_rate"]),
        interval(mcc, 1, 3),
        f"{total['loss']:.3f}",
    ]
    title = "out of fold: all of train, each sentence by the run not trained on it; 95 % intervals"
    return [*tables, (title, [*COLUMNS, "loss"], [row])]
