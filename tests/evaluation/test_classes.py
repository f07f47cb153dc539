"""Metrics by class against their definitions; sentences on which models are wrong or differ."""

from __future__ import annotations

import numpy as np
import pytest

from colakit.evaluation.classes import (
    LabelledSentences,
    class_tables,
    disagreement_table,
    error_table,
    report_classes,
)
from colakit.evaluation.comparison import ModelPredictions

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
PREDICTIONS = np.array([0, 1, 0, 1, 2, 2, 2, 2, 0, 2])
NAMES = ("a", "b", "c")


def logits_of(predictions: np.ndarray, num_labels: int) -> np.ndarray:
    return 2 * np.eye(num_labels, dtype=np.float32)[predictions]


def test_metrics_of_a_class_follow_from_the_confusion_matrix() -> None:
    report = report_classes("m", logits_of(PREDICTIONS, 3), LABELS, PREDICTIONS, NAMES)
    counts = np.array(report.confusion)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 4]]
    for index, row in enumerate(report.classes):
        assert row.support == counts[index].sum()
        assert row.recall == pytest.approx(counts[index, index] / counts[index].sum())
        assert row.precision == pytest.approx(counts[index, index] / counts[:, index].sum())
        assert row.f1 == pytest.approx(2 * row.precision * row.recall / (row.precision + row.recall))
    assert report.macro_f1 == pytest.approx(np.mean([row.f1 for row in report.classes]))


def test_roc_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=60)
    logits = generator.normal(size=(60, 2)).astype(np.float32)
    report = report_classes("m", logits, labels, logits.argmax(axis=1), ("no", "yes"))
    score = logits[:, 1] - logits[:, 0]
    pairs = score[labels == 1][:, None] - score[labels == 0][None, :]
    assert report.roc_auc == pytest.approx(float(np.mean(pairs > 0)))


def test_curves_of_a_class_without_sentences_are_undefined() -> None:
    report = report_classes("m", logits_of(PREDICTIONS, 4), LABELS, PREDICTIONS, (*NAMES, "d"))
    assert (report.roc_auc, report.average_precision) == (None, None)
    assert report.classes[3].support == 0
    means, classes, counts = class_tables("dev", [report])
    assert means[2][0][2:] == ["-", "-"]
    assert len(classes[2]) == len(counts[2]) == 4


def test_the_largest_errors_and_disagreements_come_first() -> None:
    labels = np.array([0, 0, 1, 1])
    first = np.float32([[3, 0], [0, 1], [4, 0], [0, 2]])  # wrong on 1 and, more so, on 2
    second = np.float32([[0, 1], [1, 0], [0, 1], [0, 2]])  # wrong on 0
    models = [
        ModelPredictions(name, name, 0, logits, logits.argmax(axis=1))
        for name, logits in {"first": first, "second": second}.items()
    ]
    data = LabelledSentences("dev", ["zero", "one", "two", "three"], labels, ("no", "yes"))
    _, columns, errors = error_table(data, models, 5)
    assert columns[-1] == "sentence"
    assert [(row[0], row[-1]) for row in errors] == [("first", "two"), ("first", "one"), ("second", "zero")]
    _, _, differing = disagreement_table(data, models, 2)
    assert [row[-1] for row in differing] == ["two", "zero"]  # |p - p'| is 0.72 and 0.68
    assert len(error_table(data, models, 1)[2]) == 2
