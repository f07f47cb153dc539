"""Metrics against scikit-learn, scipy and plain loops; comparison of models."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, matthews_corrcoef

from colakit.evaluation.comparison import ModelPredictions, compare
from colakit.evaluation.experiments import experiment_key
from colakit.evaluation.metrics import (
    Bootstrap,
    Interval,
    Labels,
    accuracy_of_confusion,
    best_threshold,
    holm,
    mcc_of_confusion,
    mcnemar,
    measure,
)
from colakit.evaluation.tables import format_interval
from colakit.inference.decisions import predict_labels, probabilities

LAWS = settings(max_examples=200, deadline=None)


@st.composite
def labels_and_predictions(draw: st.DrawFn, num_labels: int, max_size: int = 60) -> tuple[Labels, Labels]:
    """Labels of at least two classes, and predictions."""
    size = draw(st.integers(2, max_size))
    classes = st.lists(st.integers(0, num_labels - 1), min_size=size, max_size=size)
    return np.array(draw(classes.filter(lambda x: len(set(x)) > 1))), np.array(draw(classes))


def mcc(labels: Labels, predictions: Labels, num_labels: int = 2) -> float:
    return float(mcc_of_confusion(confusion_matrix(labels, predictions, labels=range(num_labels))))


def bootstrap(statistic: str, labels: Labels, runs: list[Labels], num_labels: int, seed: int = 0) -> Interval:
    """Mean over runs."""
    return Bootstrap(labels, runs, num_labels, seed).mean(statistic, range(len(runs)))


def paired_difference(
    statistic: str, labels: Labels, first: list[Labels], second: list[Labels], num_labels: int
) -> Interval:
    """Mean over the runs `first` minus the mean over `second`."""
    sample = Bootstrap(labels, [*first, *second], num_labels)
    return sample.difference(statistic, range(len(first)), range(len(first), len(first) + len(second)))


def noisy(labels: Labels, share: float, seed: int) -> Labels:
    """Two-class predictions that are wrong on about `share` of the sentences."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(labels)) < share, 1 - labels, labels)


@pytest.fixture
def labels() -> Labels:
    return (np.random.default_rng(0).random(300) < 0.7).astype(np.int64)


@pytest.mark.parametrize("num_labels", [2, 4])
def test_mcc_and_accuracy_match_scikit_learn(num_labels: int) -> None:
    @LAWS
    @given(labels_and_predictions(num_labels))
    def law(pair: tuple[Labels, Labels]) -> None:
        counts = confusion_matrix(*pair, labels=range(num_labels))
        values = Bootstrap(pair[0], [pair[1]], num_labels).values
        # All divide the same integers; only the order of the roundings differs.
        for result in (mcc_of_confusion(counts), values["mcc"][0]):
            assert float(result) == pytest.approx(matthews_corrcoef(*pair), abs=1e-12)
        for result in (accuracy_of_confusion(counts), values["accuracy"][0]):
            assert float(result) == pytest.approx(accuracy_score(*pair), abs=1e-12)

    law()


def test_leading_axes_are_batches() -> None:
    counts = np.random.default_rng(0).integers(0, 20, size=(5, 4, 3, 3))
    for index in np.ndindex(5, 4):
        assert mcc_of_confusion(counts)[index] == mcc_of_confusion(counts[index])
        assert accuracy_of_confusion(counts)[index] == accuracy_of_confusion(counts[index])


@pytest.mark.parametrize("answer", [0, 1])
def test_constant_predictions_have_mcc_zero(labels: Labels, answer: int) -> None:
    assert mcc(labels, np.full_like(labels, answer)) == 0
    assert mcc(np.full_like(labels, answer), labels) == 0


def test_all_correct_and_all_wrong_have_mcc_one_and_minus_one(labels: Labels) -> None:
    assert mcc(labels, labels) == 1
    assert mcc(labels, 1 - labels) == -1


def plain_bootstrap(labels: Labels, predictions: Labels, seed: int) -> NDArray[np.float64]:
    """MCC of 2000 resamples by scikit-learn's definition in a plain loop."""
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(2000):
        index = generator.integers(len(labels), size=len(labels))
        (tn, fp), (fn, tp) = np.histogram2d(labels[index], predictions[index], bins=2)[0]
        result.append((tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return np.array(result)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_bootstrap_matches_a_plain_percentile_bootstrap(labels: Labels, share: float) -> None:
    predictions = noisy(labels, share, 1)
    result = bootstrap("mcc", labels, [predictions], 2)
    draws = plain_bootstrap(labels, predictions, 2)
    assert result.value == pytest.approx(matthews_corrcoef(labels, predictions))
    assert result.low < result.value < result.high
    # A 2.5 % point of 2000 draws scatters by 0.06 of their spread; two such differ by less than 0.3 of it.
    near = 0.3 * float(draws.std())
    assert [result.low, result.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]).tolist(), abs=near)


@pytest.mark.parametrize("statistic", ["mcc", "accuracy"])
@pytest.mark.parametrize("seed", range(3))
def test_intervals_contain_their_value_and_depend_on_the_seed(
    labels: Labels, statistic: str, seed: int
) -> None:
    runs = [noisy(labels, 0.2, seed), noisy(labels, 0.3, seed + 10)]
    result = bootstrap(statistic, labels, runs, 2, seed)
    assert result.low < result.value < result.high
    assert result == bootstrap(statistic, labels, runs, 2, seed)
    other = bootstrap(statistic, labels, runs, 2, seed + 1)
    assert other.value == result.value
    assert other != result or statistic == "accuracy"  # which takes few values
    alone = [bootstrap(statistic, labels, [run], 2, seed).value for run in runs]
    assert result.value == pytest.approx(np.mean(alone))


def test_a_perfect_model_has_a_wilson_interval_of_accuracy_and_an_undefined_one_of_mcc(
    labels: Labels,
) -> None:
    for predictions, value in ((labels, 1.0), (1 - labels, 0.0)):
        accuracy = bootstrap("accuracy", labels, [predictions], 2)
        z2, n = 1.959963984540054**2, len(labels)  # Wilson 1927
        ends = (n / (n + z2), 1.0) if value else (0.0, z2 / (n + z2))
        assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((value, *ends))
        assert format_interval(bootstrap("mcc", labels, [predictions], 2), 1, 3) == f"{2 * value - 1:.3f} [-]"


@pytest.mark.parametrize("statistic", ["mcc", "accuracy"])
def test_a_model_has_no_difference_from_itself(labels: Labels, statistic: str) -> None:
    runs = [noisy(labels, 0.2, 0), noisy(labels, 0.3, 1)]
    assert paired_difference(statistic, labels, runs, runs, 2) == Interval(0.0, 0.0, 0.0)


def test_paired_differences_are_antisymmetric_and_narrower_than_unpaired_ones(labels: Labels) -> None:
    ours = noisy(labels, 0.2, 0)
    others = np.where(np.arange(len(labels)) < 10, 1 - ours, ours)
    forward = paired_difference("accuracy", labels, [ours], [others], 2)
    backward = paired_difference("accuracy", labels, [others], [ours], 2)
    assert forward.value == pytest.approx(-backward.value)
    assert forward.value == pytest.approx(np.mean(ours == labels) - np.mean(others == labels))
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    alone = bootstrap("accuracy", labels, [ours], 2)
    assert forward.high - forward.low < alone.high - alone.low


@pytest.mark.parametrize(
    ("ours_only", "others_only"), [(0, 0), (1, 0), (3, 9), (9, 3), (10, 10), (0, 12), (40, 61)]
)
def test_mcnemar_is_the_exact_binomial_tail(ours_only: int, others_only: int) -> None:
    both, neither = 5, 4
    labels = np.ones(both + neither + ours_only + others_only, dtype=np.int64)
    ours = np.repeat([1, 0, 1, 0], [both, neither, ours_only, others_only])
    others = np.repeat([1, 0, 0, 1], [both, neither, ours_only, others_only])
    n, fewer = ours_only + others_only, min(ours_only, others_only)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar(labels, ours, others) == pytest.approx(min(1.0, 2 * tail))


@LAWS
@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 1)), min_size=1, max_size=40))
def test_best_threshold_has_the_highest_mcc_of_thresholds_that_reach_the_majority_rate(
    pairs: list[tuple[int, int]],
) -> None:
    probs, labels = np.array([p for p, _ in pairs]) / 16, np.array([label for _, label in pairs])
    threshold = best_threshold(probs, labels)
    distinct = np.unique(probs)
    cuts = {
        cut: (probs >= cut).astype(np.int64) for cut in [0.5, *((distinct[1:] + distinct[:-1]) / 2).tolist()]
    }
    majority = max(np.mean(labels == 0), np.mean(labels == 1))
    scores = {
        cut: mcc(labels, predictions)
        for cut, predictions in cuts.items()
        if cut == 0.5 or np.mean(predictions == labels) >= majority
    }
    assert scores[threshold] == pytest.approx(max(scores.values()), abs=1e-12)
    if scores[0.5] >= max(scores.values()) - 1e-12:
        assert threshold == 0.5


def test_best_threshold_is_the_middle_of_the_equally_good_ones() -> None:
    probs = 0.6 + 0.03 * np.arange(9)
    labels = np.array([0, 1, 0, 1, 1, 0, 1, 1, 1])  # 1, 3 or 6 sentences below the cut give the same MCC, 0.5
    assert best_threshold(probs, labels) == pytest.approx(0.675)


def test_best_threshold_of_one_class_is_a_half() -> None:
    assert best_threshold(np.array([0.1, 0.6, 0.7]), np.ones(3, dtype=np.int64)) == 0.5


def test_memory_of_best_threshold_grows_with_the_sentences_not_their_square() -> None:
    generator = np.random.default_rng(0)
    count = 2000
    labels, probs = generator.integers(0, 2, size=count), generator.random(count)
    tracemalloc.start()
    best_threshold(probs, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1000 * count  # bytes; an array of count² numbers takes 16000 * count


def test_predicting_with_the_best_threshold_reaches_its_mcc(labels: Labels) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 2)).astype(np.float32)
    logits[:, 1] += 0.8 * labels + 1
    probs = probabilities(logits)
    cuts = (np.sort(probs[1:, 1]) + np.sort(probs[:-1, 1])) / 2
    brute = max(mcc(labels, (probs[:, 1] >= cut).astype(np.int64)) for cut in cuts)
    result = mcc(labels, predict_labels(logits, best_threshold(probs[:, 1], labels)))
    assert result >= brute
    assert result > mcc(labels, predict_labels(logits, None))


def test_probabilities_and_argmax_are_those_of_torch() -> None:
    logits = 40 * np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    expected = torch.from_numpy(logits).double().softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(logits), expected, rtol=1e-6)  # logits were shifted in fp32
    assert predict_labels(logits, None).tolist() == expected.argmax(1).tolist()
    assert predict_labels(logits[:, :2], 0.5).tolist() == predict_labels(logits[:, :2], None).tolist()
    assert predict_labels(np.zeros((1, 2), dtype=np.float32), 0.5).tolist() == [1]
    assert probabilities(logits[:0]).shape == (0, 3)


@pytest.mark.parametrize("scale", [1.0, 10.0, 200.0])
def test_loss_matches_torch_cross_entropy(scale: float) -> None:
    generator = np.random.default_rng(0)
    logits = (scale * generator.normal(size=(80, 3))).astype(np.float32)
    labels = generator.integers(0, 3, size=80)
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)).item()
    assert measure(logits, labels, predict_labels(logits, None)).loss == pytest.approx(expected, rel=1e-9)


def test_rates_match_plain_counts() -> None:
    labels = np.array([0, 0, 0, 2, 2, 1, 0, 0, 2, 1])
    predictions = np.array([0, 0, 2, 2, 2, 0, 0, 0, 0, 2])
    result = measure(np.zeros((10, 3), dtype=np.float32), labels, predictions)
    assert result.num_examples == 10
    assert result.accuracy == pytest.approx(0.6)
    assert result.mcc == pytest.approx(matthews_corrcoef(labels, predictions))
    assert result.majority_rate == 0.5
    assert result.predicted_rates == pytest.approx((0.6, 0.0, 0.4))
    assert result.loss == pytest.approx(math.log(3))
    assert not result.collapsed
    assert result.as_dict()["mcc"] == result.mcc


@pytest.mark.parametrize("answer", [0, 1])
def test_constant_predictions_are_collapsed(labels: Labels, answer: int) -> None:
    result = measure(np.zeros((300, 2), dtype=np.float32), labels, np.full_like(labels, answer))
    assert result.collapsed
    assert result.mcc == 0
    assert max(result.predicted_rates) == 1
    assert (result.accuracy == result.majority_rate) == (answer == 1)


def test_labels_of_one_class_have_metrics() -> None:
    ones = np.ones(4, dtype=np.int64)
    result = measure(np.tile(np.float32([0, 2]), (4, 1)), ones, ones)
    assert (result.accuracy, result.mcc, result.majority_rate) == (1, 0, 1)


def answers(labels: Labels, group: str, seed: int | None, share: float) -> ModelPredictions:
    predictions = noisy(labels, share, 100 + (seed or 0))
    logits = np.eye(2, dtype=np.float32)[predictions]
    return ModelPredictions(f"{group}-{seed}", group, seed, logits, predictions)


def test_groups_are_means_and_deviations_over_seeds(labels: Labels) -> None:
    outputs = [
        answers(labels, "b", 0, 0.2),
        answers(labels, "a", 1, 0.3),
        answers(labels, "b", 1, 0.25),
        answers(labels, "b", 2, 0.22),
    ]
    result = compare("id_dev", labels, outputs)
    assert result.split == "id_dev"
    assert [row.model for row in result.models] == [answer.model for answer in outputs]
    assert [(group.group, group.num_seeds) for group in result.groups] == [("b", 3), ("a", 1)]
    ours = [matthews_corrcoef(labels, answer.predictions) for answer in outputs if answer.group == "b"]
    hits = [float(np.mean(answer.predictions == labels)) for answer in outputs if answer.group == "b"]
    group = result.groups[0]
    assert (group.mcc_mean, group.mcc_sd) == pytest.approx((np.mean(ours), np.std(ours, ddof=1)))
    assert (group.accuracy_mean, group.accuracy_sd) == pytest.approx((np.mean(hits), np.std(hits, ddof=1)))
    assert (result.groups[1].mcc_sd, result.groups[1].accuracy_sd) == (None, None)
    assert group.majority_rate == pytest.approx(labels.mean())
    assert group.num_collapsed == 0
    for row, answer in zip(result.models, outputs, strict=True):
        assert row.mcc == bootstrap("mcc", labels, [answer.predictions], 2)
        assert row.metrics.mcc == pytest.approx(row.mcc.value)


def test_collapsed_seeds_are_counted(labels: Labels) -> None:
    lost = np.ones_like(labels)
    collapsed = ModelPredictions("a-1", "a", 1, np.eye(2, dtype=np.float32)[lost], lost)
    result = compare("dev", labels, [answers(labels, "a", 0, 0.2), collapsed])
    assert result.groups[0].num_collapsed == 1
    assert result.pairs == ()


def test_pairs_are_matched_by_seed(labels: Labels) -> None:
    ours = [answers(labels, "a", seed, 0.2) for seed in (0, 1, 2)]
    others = [answers(labels, "b", seed, 0.3) for seed in (2, 1, 7)]
    (pair,) = compare("dev", labels, [*ours, *others]).pairs
    assert (pair.first, pair.second) == ("a", "b")
    expected = [
        mcnemar(labels, ours[1].predictions, others[1].predictions),
        mcnemar(labels, ours[2].predictions, others[0].predictions),
    ]
    assert sorted(pair.mcnemar_p) == sorted(expected)
    assert pair.mcc == paired_difference(
        "mcc", labels, [a.predictions for a in ours], [b.predictions for b in others], 2
    )


@pytest.mark.parametrize(("seeds", "num_tests"), [((None, None), 1), ((0, 5), 1), ((4, 4), 1)])
def test_two_single_models_are_paired_whatever_their_seeds(
    labels: Labels, seeds: tuple[int | None, int | None], num_tests: int
) -> None:
    (pair,) = compare(
        "dev", labels, [answers(labels, "a", seeds[0], 0.2), answers(labels, "b", seeds[1], 0.3)]
    ).pairs
    assert len(pair.mcnemar_p) == num_tests


def test_groups_of_several_unmatched_seeds_have_no_mcnemar(labels: Labels) -> None:
    three = [answers(labels, "a", 0, 0.2), answers(labels, "a", 1, 0.2), answers(labels, "b", 2, 0.3)]
    assert compare("dev", labels, three).pairs[0].mcnemar_p == ()


def origin(**changes: Any) -> dict[str, Any]:
    settings_of_run = {
        "seed": 0,
        "device": "cpu",
        "lora": {"rank": 8},
        "data": {"path": "cola"},
        "distill": {"teacher": "runs/finetune-001", "kd_weight": 0.5},
    }
    return {"command": "distill", "base": "gpt2", "seed": 0, "settings": settings_of_run | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"device": "cuda"},
        {"distill": {"teacher": "elsewhere/finetune-009", "kd_weight": 0.5}},
        {"plot": {"dpi": 300}},
        {"serve": {"port": 80}},
        {"precision": "bf16"},
        {"base": "elsewhere/base", "data": {"path": "../cola", "splits": {"dev": "dev.csv"}}},
    ],
    ids=str,
)
def test_seed_machine_and_paths_are_not_the_experiment(changes: dict[str, Any]) -> None:
    assert experiment_key(origin(**changes)) == experiment_key(origin())


@pytest.mark.parametrize(
    "other",
    [
        origin(lora={"rank": 4}),
        origin(precision="int8"),
        origin(distill={"teacher": "runs/finetune-001", "kd_weight": 1.0}),
        origin() | {"command": "train-scratch"},
        origin() | {"base": "gpt2-medium"},
        origin() | {"base_fingerprint": "0f"},
        origin() | {"data": {"train": "0f"}},
        {"command": "distill", "base": "gpt2", "settings": None},
    ],
    ids=["rank", "int8", "kd_weight", "command", "base", "content of the base", "data", "unknown"],
)
def test_rank_weights_command_base_and_data_are_the_experiment(other: dict[str, Any]) -> None:
    assert experiment_key(other) != experiment_key(origin())


def test_holm_is_the_step_down_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_detectable_difference_is_found_in_four_of_five_samples() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=400)

    def flipped(rate: float) -> np.ndarray:
        return np.where(generator.random(400) < rate, 1 - labels, labels)

    found, detectable = 0, []
    for _ in range(40):
        sample = Bootstrap(labels, [flipped(0.20), flipped(0.285)], 2)
        detectable.append(sample.detectable("accuracy", [0], [1]))
        found += sample.difference("accuracy", [0], [1]).low > 0
    assert np.mean(detectable) == pytest.approx(0.085, abs=0.01)  # the true difference
    assert 26 <= found <= 38


def test_p_values_are_corrected_over_all_tests_of_a_split(labels: Labels) -> None:
    comparison = compare("dev", labels, [answers(labels, f"g{n}", n, 0.1 * n) for n in (1, 2, 3)])
    raw = [p for pair in comparison.pairs for p in pair.mcnemar_p]
    assert [p for pair in comparison.pairs for p in pair.corrected_p] == holm(raw)
