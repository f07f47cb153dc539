"""Temperature scaling, NLL, Brier score and ECE, against scikit-learn and direct definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from colakit.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    NUM_BINS,
    calibration_rows,
    calibration_table,
    fit_temperature,
    measure_calibration,
)
from colakit.evaluation.comparison import ModelPredictions
from colakit.inference.decisions import predict_labels, probabilities, raw_threshold


def sample(size: int, num_labels: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose labels are drawn from softmax(logits / scale)."""
    generator = np.random.default_rng(size + num_labels)
    logits = scale * generator.normal(size=(size, num_labels))
    probs = probabilities(logits.astype(np.float32), scale)
    labels = np.array([generator.choice(num_labels, p=row) for row in probs])
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("num_labels", [2, 5])
def test_the_temperature_of_the_labels_is_found(scale: float, num_labels: int) -> None:
    assert fit_temperature(*sample(20_000, num_labels, scale)) == pytest.approx(scale, rel=0.05)


def test_the_temperature_stays_in_its_bounds_and_is_1_where_it_has_no_effect() -> None:
    labels = np.array([0, 1, 0, 1])
    perfect = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
    assert MIN_TEMPERATURE <= fit_temperature(perfect, labels) < 0.1
    assert fit_temperature(-perfect, labels) == pytest.approx(MAX_TEMPERATURE, rel=0.01)
    assert fit_temperature(np.zeros((4, 2), np.float32), labels) == 1.0


@pytest.mark.parametrize("num_labels", [2, 4])
def test_scores_are_those_of_scikit_learn(num_labels: int) -> None:
    logits, labels = sample(500, num_labels, 2.0)
    probs = probabilities(logits)
    (measured,) = measure_calibration([probs], labels)
    assert measured.nll.value == pytest.approx(log_loss(labels, probs))
    expected = brier_score_loss(labels, probs, scale_by_half=False)
    assert measured.brier.value == pytest.approx(expected)
    for interval in (measured.nll, measured.brier, measured.ece):
        assert interval.low <= interval.high
    assert measured.nll.low < measured.nll.value < measured.nll.high


def test_ece_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    logits, labels = sample(700, 3, 3.0)
    probs = probabilities(logits)
    (measured,) = measure_calibration([probs], labels)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    edges = np.linspace(0, 1, NUM_BINS + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        rows = (confidence >= low) & ((confidence < high) | (high == 1))
        if rows.any():
            total += rows.sum() * abs(confidence[rows].mean() - correct[rows].mean())
    assert measured.ece.value == pytest.approx(total / len(labels))
    assert sum(each.num_examples for each in measured.bins) == len(labels)


def test_a_fitted_temperature_lowers_nll_and_ece() -> None:
    logits, labels = sample(5000, 2, 3.0)
    temperature = fit_temperature(logits, labels)
    model = ModelPredictions("model", "group", 0, logits, logits.argmax(axis=1), temperature=temperature)
    (row,) = calibration_rows(labels, [model])
    assert row.calibrated.nll.value < row.raw.nll.value
    assert row.calibrated.ece.value < row.raw.ece.value / 3
    _, columns, cells = calibration_table("dev", [row])
    assert [len(cell) for cell in cells] == [len(columns)] * 2


@given(
    st.floats(0.05, 20),
    st.floats(0.01, 0.99),
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30),
)
def test_the_raw_threshold_gives_the_same_labels(
    temperature: float, threshold: float, odds: list[float]
) -> None:
    logits = np.column_stack([np.zeros(len(odds)), odds]).astype(np.float32)
    calibrated = probabilities(logits, temperature)[:, 1]
    clear = np.abs(calibrated - threshold) > 1e-9
    raw = raw_threshold(threshold, temperature)
    same = predict_labels(logits, threshold, temperature) == predict_labels(logits, raw)
    assert same[clear].all()
