"""The result of a trained classifier: predictions, metrics of every split, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.evaluation.metrics import Metrics, best_threshold, measure_with_intervals
from colakit.evaluation.tables import metrics_row
from colakit.inference.decisions import predict_labels, probabilities
from colakit.storage.run_folder import RunFolder
from colakit.utils.console import Reporter

COLUMNS = ["split", "sentences", "accuracy %", "majority %", "MCC", "loss"]

Logits = NDArray[np.float32]  # (N, C)
Measured = Mapping[str, tuple[Metrics, dict[str, list[float]]]]  # split -> metrics, ends of their intervals


def choose_threshold(
    rule: str, logits: Logits, labels: NDArray[np.int64], temperature: float = 1.0
) -> float | None:
    """Return the threshold for logits of the validation split by a setting; None is argmax."""
    if rule == "argmax" or logits.shape[1] != 2:
        return None
    return best_threshold(probabilities(logits, temperature)[:, 1], labels)


def write_predictions(
    folder: RunFolder,
    splits: Mapping[str, Split],
    logits: Mapping[str, Logits],
    label_names: Sequence[str],
    threshold: float | None,
    temperature: float,
) -> Measured:
    """Write predictions.json, and return the metrics of every split."""
    probs = {name: probabilities(logits[name], temperature) for name in splits}
    predictions = {name: predict_labels(logits[name], threshold, probs=probs[name]) for name in splits}
    folder.write_predictions(
        label_names, {name: (split, predictions[name], probs[name]) for name, split in splits.items()}
    )
    return {
        name: measure_with_intervals(split.require_labels(), logits[name], predictions[name])
        for name, split in splits.items()
    }


def summary_of(measured: Measured) -> dict[str, Any]:
    """Return the metrics and intervals by split, as plain data."""
    return {name: {**metrics.as_dict(), **intervals} for name, (metrics, intervals) in measured.items()}


def print_result(
    title: str, measured: Measured, label_names: Sequence[str], threshold: float | None, reporter: Reporter
) -> None:
    """Print the metrics of every split, and warn where a single label is predicted."""
    if threshold is not None:
        title += f", threshold {threshold:.3f} chosen on val"
    reporter.table(title, COLUMNS, [metrics_row(name, metrics) for name, (metrics, _) in measured.items()])
    for name, (metrics, _) in measured.items():
        if metrics.collapsed:
            label = label_names[int(np.argmax(metrics.predicted_rates))]
            reporter.warn(
                f"{name}: the model predicts {label!r} for every sentence: MCC 0, accuracy is the rate "
                f"of that label (majority rate {100 * metrics.majority_rate:.2f} %)"
            )
