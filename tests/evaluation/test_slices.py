"""MCC on slices of a split, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.metrics import Spread, indices_by_value
from colakit.evaluation.slices import slice_scores


def predicted(model: str, group: str, predictions: list[int]) -> ModelPredictions:
    result = np.array(predictions)
    return ModelPredictions(model, group, None, np.eye(2, dtype=np.float32)[result], result)


def index(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_mcc_of_slices_by_hand() -> None:
    labels = np.array([1, 1, 0, 0, 1, 0])
    models = [
        predicted("a-0", "a", [1, 1, 0, 0, 0, 1]),
        predicted("b-0", "b", [1, 0, 0, 0, 0, 1]),
        predicted("a-1", "a", [1, 0, 0, 0, 1, 0]),
    ]
    parts = {"first": index(0, 1, 2, 3), "last": index(4, 5), "good": index(0, 1, 4), "none": index()}
    first, last, good, none = slice_scores(labels, models, parts)
    some = 2 / math.sqrt(12)  # one of four wrong: (1·2 - 0·1) / √(1·2·2·3)
    assert [score.group for score in first.scores] == ["a", "b"]
    assert first.scores[0].mcc == Spread(
        pytest.approx((1 + some) / 2), pytest.approx((1 - some) / math.sqrt(2))
    )
    assert first.scores[1].mcc == Spread(pytest.approx(some), None)
    assert [score.mcc.mean for score in last.scores] == [0, -1]  # seeds of a: -1 and 1
    for score in (*first.scores, *last.scores):
        assert score.interval.value == pytest.approx(score.mcc.mean)
        assert score.interval.low <= score.interval.value <= score.interval.high
    assert [row.num_examples for row in (first, last, good, none)] == [4, 2, 3, 0]
    assert [row.majority_rate for row in (first, last, good, none)] == [0.5, 0.5, 1, None]
    assert (good.scores, none.scores) == ((), ())  # all labels equal: no MCC


@pytest.mark.parametrize(("size", "others", "few"), [(30, 5, False), (29, 14, True), (200, 4, True)])
def test_small_and_unbalanced_slices_are_flagged(size: int, others: int, few: bool) -> None:
    labels = np.repeat([1, 0], [size - others, others])
    (row,) = slice_scores(labels, [predicted("a", "a", [1] * size)], {"all": np.arange(size)})
    assert row.few == few


def test_slices_by_value_contain_every_sentence_once() -> None:
    result = indices_by_value(["b", "a", "b", "c", "a"])
    assert {name: numbers.tolist() for name, numbers in result.items()} == {
        "b": [0, 2],
        "a": [1, 4],
        "c": [3],
    }
    assert list(result) == ["b", "a", "c"]
