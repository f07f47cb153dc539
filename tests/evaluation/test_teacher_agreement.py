"""Students and their teachers: values computed by hand, and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from colakit.evaluation import metrics
from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.experiments import ModelInfo, experiment_key, teachers_of
from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Spread
from colakit.evaluation.teacher_agreement import (
    cohens_kappa,
    compare_with_teachers,
    ensemble_predictions,
    match_teachers,
)


def logits_of(log_odds: Sequence[float]) -> NDArray[np.float32]:
    return np.stack([np.zeros(len(log_odds)), np.array(log_odds)], axis=1).astype(np.float32)


def predictions_of(
    model: str, predictions: Sequence[int] | Labels, group: str = "a", seed: int = 0
) -> ModelPredictions:
    result = np.array(predictions, dtype=np.int64)
    return ModelPredictions(model, group, seed, logits_of(2.0 * result - 1), result)


def model_info(fingerprint: str, *teachers: str, size: int = 100) -> ModelInfo:
    return ModelInfo("", "", "", None, fingerprint=fingerprint, teachers=teachers, num_parameters=size)


def test_kappa_by_hand() -> None:
    ours, others = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    # 3 of 4 alike; by chance 1/2·1/4 + 1/2·3/4 = 1/2
    assert cohens_kappa(ours, others) == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))
    assert cohens_kappa(ours, ours) == 1
    assert cohens_kappa(ours, 1 - ours) == -1
    assert cohens_kappa(ours, np.ones(4, dtype=np.int64)) == 0
    assert cohens_kappa(np.ones(4, dtype=np.int64), np.ones(4, dtype=np.int64)) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_kappa_matches_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    ours, others = np.array(pairs).T
    result = cohens_kappa(ours, others)
    if result is None:
        assert len(set(ours) | set(others)) == 1
    else:
        assert result == pytest.approx(cohen_kappa_score(ours, others), abs=1e-12)


def test_teachers_are_those_that_a_student_records() -> None:
    one, other = {"path": "a", "experiment": "x"}, {"path": "b", "experiment": "y"}
    assert teachers_of({"command": "finetune"}) == []
    assert teachers_of({"teachers": []}) == []
    assert teachers_of({"teachers": [one, other]}) == [one, other]


def test_null_settings_do_not_change_the_experiment() -> None:
    settings = {"seed": 3, "lora": {"rank": 8}, "finetune": {"epochs": 2}, "transfer": {"seed": 1}}
    later = {**settings, "lora": {"rank": 8, "new": None}, "finetune": {"epochs": 2, "frozen_cache_mib": 5}}
    another = {**settings, "transfer": {"seed": 2}}
    keys = [experiment_key({"command": "distill", "settings": each}) for each in (settings, later, another)]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_the_teachers_experiments_are_part_of_the_experiment_in_any_order() -> None:
    one, other = {"experiment": "x"}, {"experiment": "y"}
    key = experiment_key({"command": "distill", "teachers": [one, other]})
    assert key == experiment_key({"command": "distill", "teachers": [other, one]})
    assert key != experiment_key({"command": "distill", "teachers": [one]})
    named = {"distill": {"teacher": ["runs/a", "runs/b"]}}, {"distill": {"teacher": ["runs/c"]}}
    assert experiment_key({"settings": named[0]}) == experiment_key({"settings": named[1]})


def odds(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [((None, None), [1, 0, 0]), ((odds(1), odds(1)), [1, 0, 0]), ((odds(0), odds(4)), [0, 0, 0])],
)
def test_ensemble_predicts_from_the_mean_log_odds(
    cuts: tuple[float | None, float | None], expected: list[int]
) -> None:
    first = ModelPredictions("a", "t", 0, logits_of([2, -2, 1]), np.zeros(3, dtype=np.int64))
    second = ModelPredictions("b", "t", 1, logits_of([1, 1, -3]), np.zeros(3, dtype=np.int64))
    # means 1.5, -0.5 and -1, against the means of the thresholds' log-odds: 0, 1 and 2
    assert ensemble_predictions([first, second], cuts).tolist() == expected


def test_ensemble_of_one_keeps_its_predictions() -> None:
    alone = ModelPredictions("a", "t", 0, logits_of([2, -2]), np.array([0, 1]))  # at a threshold of its own
    assert ensemble_predictions([alone], [0.9]).tolist() == [0, 1]


def test_ensemble_of_three_classes_predicts_the_largest_mean_logit() -> None:
    first = ModelPredictions("a", "t", 0, np.float32([[3, 0, 2]]), np.array([0]))
    second = ModelPredictions("b", "t", 1, np.float32([[0, 1, 2]]), np.array([2]))
    assert ensemble_predictions([first, second], [None, None]).tolist() == [2]


def test_students_are_matched_if_all_their_teachers_are_given() -> None:
    infos = [
        model_info("t0"),
        model_info("s0", "t0"),
        model_info("s1", "t1"),  # whose teacher is absent
        model_info("s2", "t0", "t2"),
        model_info("t2"),
        model_info("t0"),  # the same model again
    ]
    assert match_teachers(infos) == {1: [0], 3: [0, 4]}


def test_agreement_and_share_of_mcc_by_hand() -> None:
    labels = np.array([1, 1, 0, 0] * 50)
    answers = [
        predictions_of("t0", labels, "teacher"),
        predictions_of("t1", [1, 0, 0, 0] * 50, "teacher", 1),  # MCC 2/√12
        predictions_of("s0", [1, 0, 0, 0] * 50, "student"),
        predictions_of("s1", [1, 0, 0, 0] * 50, "student", 1),
        predictions_of("s2", labels, "student", 2),  # whose teacher is absent
    ]
    infos = [
        model_info("t0", size=800),
        model_info("t1", size=800),
        model_info("s0", "t0", size=50),
        model_info("s1", "t1", size=50),
        model_info("s2", "t2", size=50),
    ]
    (row,) = compare_with_teachers(labels, answers, infos)
    assert (row.group, row.teachers, row.num_seeds) == ("student", ("teacher",), 2)
    assert row.agreement == Spread(7 / 8, pytest.approx(math.sqrt(2) / 8))  # 3/4 and 1
    assert row.kappa == Spread(3 / 4, pytest.approx(math.sqrt(2) / 4))  # 1/2 and 1
    assert [(pupil.model, pupil.teachers) for pupil in row.pupils] == [("s0", ("t0",)), ("s1", ("t1",))]
    each = 2 / math.sqrt(12)
    assert (row.mcc.value, row.teacher_mcc.value) == (pytest.approx(each), pytest.approx((1 + each) / 2))
    assert row.mcc_kept is not None
    assert row.mcc_kept.value == pytest.approx(2 * each / (1 + each))
    assert row.mcc_kept.low < row.mcc_kept.value < row.mcc_kept.high < 1
    assert (row.num_parameters, row.teacher_parameters) == (50, 800)


def test_a_student_of_two_teachers_is_compared_with_their_ensemble() -> None:
    labels = np.array([1, 1, 0, 0] * 10)
    answers = [
        predictions_of("t0", labels, "t"),
        predictions_of("t1", labels, "t", 1),
        predictions_of("s", labels, "s"),
    ]
    infos = [model_info("t0", size=300), model_info("t1", size=500), model_info("s", "t0", "t1", size=80)]
    (row,) = compare_with_teachers(labels, answers, infos)
    assert row.pupils[0].teachers == ("t0", "t1")
    assert row.teacher_parameters == 800
    assert row.agreement == Spread(1, None)


def test_models_without_teachers_have_no_row() -> None:
    labels = np.array([1, 0])
    assert compare_with_teachers(labels, [predictions_of("a", labels)], [model_info("a")]) == ()


@pytest.fixture
def labels() -> Labels:
    return (np.random.default_rng(0).random(300) < 0.7).astype(np.int64)


def wrong_on(labels: Labels, share: float, seed: int) -> Labels:
    return np.where(np.random.default_rng(seed).random(len(labels)) < share, 1 - labels, labels)


def test_a_copy_keeps_all_mcc_and_a_collapsed_student_none(labels: Labels) -> None:
    teacher = wrong_on(labels, 0.2, 1)
    sample = Bootstrap(labels, [teacher, teacher, np.ones_like(labels)], 2)
    assert sample.ratio("mcc", [1], [0]) == Interval(1, 1, 1)
    assert sample.ratio("mcc", [2], [0]) == Interval(0, 0, 0)


def test_ratio_is_none_if_the_denominator_may_be_zero(labels: Labels) -> None:
    student, guessing = wrong_on(labels, 0.2, 1), wrong_on(labels, 0.5, 2)
    sample = Bootstrap(labels, [student, guessing, 1 - labels, np.ones_like(labels)], 2)
    assert sample.mean("mcc", [1]).low < 0
    assert [sample.ratio("mcc", [0], [teacher]) for teacher in (1, 2, 3)] == [None, None, None]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_the_interval_of_a_share_is_the_paired_percentile_bootstrap(labels: Labels, share: float) -> None:
    student, teacher = wrong_on(labels, 0.35, 1), wrong_on(labels, share, 2)
    result = Bootstrap(labels, [student, teacher], 2).ratio("mcc", [0], [1])
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(1000):
        index = generator.integers(len(labels), size=len(labels))
        ours, others = (matthews_corrcoef(labels[index], p[index]) for p in (student, teacher))
        drawn.append(ours / others)
    assert result is not None
    assert result.value == pytest.approx(
        matthews_corrcoef(labels, student) / matthews_corrcoef(labels, teacher)
    )
    # A 2.5 % point of 1000 draws scatters by 0.08 of their spread, and more where the tail is long.
    near = 0.4 * float(np.std(drawn))
    assert [result.low, result.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=near)


def test_models_share_their_resamples_however_many_are_drawn_at_a_time(
    labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [wrong_on(labels, share, 1) for share in (0.1, 0.2, 0.3)]
    together = Bootstrap(labels, models, 2)
    monkeypatch.setattr(metrics, "MAX_INDICES", 7 * len(labels))
    for position, model in enumerate(models):
        alone = Bootstrap(labels, [model], 2)
        for statistic in ("accuracy", "mcc"):
            assert np.array_equal(
                alone.resampled[statistic][:, 0], together.resampled[statistic][:, position]
            )
            assert alone.values[statistic][0] == together.values[statistic][position]
