"""Calibration: one temperature for the logits, fitted on the validation split, and how well it works.

A classifier is calibrated if of the sentences with probability p a share of p is right (Guo et al. 2017,
arXiv:1706.04599). The temperature does not change the order of the probabilities.

Shapes: N sentences, C classes, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.metrics import Interval, Labels, bootstrap_draws, percentile_interval
from colakit.evaluation.tables import Table, format_interval
from colakit.inference.decisions import probabilities

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
NUM_BINS = 15  # of equal width, of the probability of the predicted class
MIN_PROBABILITY = 1e-12  # of a label, in the logarithm


def fit_temperature(logits: NDArray[np.float32], labels: Labels) -> float:
    """Return the temperature with the lowest mean cross-entropy of (N, C) logits and (N,) labels.

    It is 1 if no other is better: for logits that are all equal, or too few sentences.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(_nll(probabilities(logits, np.exp(log_temperature)), labels).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    fitted = minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(fitted.x)) if fitted.fun < loss(0.0) - 1e-9 else 1.0


@dataclass(frozen=True)
class Bin:
    """Sentences whose predicted class has a probability in one interval of width 1 / `NUM_BINS`.

    Attributes:
        confidence: mean probability of the predicted class.
        accuracy: share of the sentences whose most probable class is right.
    """

    num_examples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Quality of probabilities, with 95 % bootstrap intervals over the sentences; 0 is best.

    Attributes:
        nll: mean negative log-likelihood of the labels, in nats.
        brier: mean squared error of the probabilities, summed over the classes, from 0 to 2 (Brier 1950).
        ece: expected calibration error: mean distance of confidence and accuracy over the sentences' bins.
        bins: those with sentences, by increasing confidence.
    """

    nll: Interval
    brier: Interval
    ece: Interval
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration of a model on a split, without and with its temperature."""

    model: str
    temperature: float
    raw: Calibration
    calibrated: Calibration

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def measure_calibration(probs: Sequence[NDArray[np.float64]], labels: Labels) -> list[Calibration]:
    """Return the calibration of each of several (N, C) probabilities of (N,) labels, on shared resamples."""
    size, terms, bins = len(labels), [], []
    for each in probs:
        confidence, correct = each.max(axis=1), each.argmax(axis=1) == labels
        index = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)  # (N,)
        in_bin = index[:, None] == np.arange(NUM_BINS)  # (N, B)
        brier = ((each - np.eye(each.shape[1])[labels]) ** 2).sum(axis=1)
        terms.append(np.column_stack([_nll(each, labels), brier, in_bin * (correct - confidence)[:, None]]))
        bins.append(
            tuple(
                Bin(int(rows.sum()), float(confidence[rows].mean()), float(correct[rows].mean()))
                for rows in in_bin.T
                if rows.any()
            )
        )
    stacked = np.concatenate(terms, axis=1)  # (N, M·(2 + B)) of M probabilities

    def statistics(draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return NLL, Brier score and ECE of each, (resamples, M, 3)."""
        sums = (draws @ stacked / size).reshape(len(draws), len(terms), -1)
        return np.concatenate([sums[..., :2], np.abs(sums[..., 2:]).sum(axis=2, keepdims=True)], axis=2)

    values = statistics(np.ones((1, size), dtype=np.int64))[0]  # (M, 3)
    resampled = np.concatenate([statistics(draws) for draws in bootstrap_draws(size)])  # (K, M, 3)
    results = []
    for number, of_bins in enumerate(bins):
        nll, brier_score, ece = map(percentile_interval, values[number].tolist(), resampled[:, number].T)
        results.append(Calibration(nll, brier_score, ece, of_bins))
    return results


def calibration_rows(labels: Labels, predictions: Sequence[ModelPredictions]) -> tuple[CalibrationRow, ...]:
    """Return the calibration of every model on one labelled split, without and with its temperature."""
    temperatures = [temperature for model in predictions for temperature in (1.0, model.temperature)]
    logits = [model.logits for model in predictions for _ in range(2)]
    measured = iter(measure_calibration(list(map(probabilities, logits, temperatures)), labels))
    return tuple(
        CalibrationRow(each.model, each.temperature, next(measured), next(measured)) for each in predictions
    )


def calibration_table(where: str, rows: Sequence[CalibrationRow]) -> Table:
    """Return two rows for each model: without and with its temperature."""
    cells = [
        [row.model, kind, *(format_interval(value, 1, 3) for value in (of.nll, of.brier, of.ece))]
        for row in rows
        for kind, of in (("1", row.raw), (f"{row.temperature:.2f}", row.calibrated))
    ]
    title = f"{where}: calibration, with 95 % bootstrap intervals"
    return title, ["model", "temperature", "NLL", "Brier score", "ECE"], cells


def _nll(probs: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    return -np.log(np.maximum(probs[np.arange(len(labels)), labels], MIN_PROBABILITY))
