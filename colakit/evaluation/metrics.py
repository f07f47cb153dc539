"""Metrics of predictions, bootstrap intervals, McNemar's test and the decision threshold.

Shapes: N sentences, C classes, M models, K resamples.

MCC is the Matthews correlation coefficient, for more than two classes Gorodkin's R_K. As in scikit-learn it
is 0 if all predictions are one class. Intervals are 95 % percentile bootstraps over sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
POWER = 0.8  # probability of finding a difference of the size `Bootstrap.detectable`
MAX_NONPOSITIVE = 0.01  # share of resamples; less than (1 - CONFIDENCE) / 2
STATISTICS = ("accuracy", "mcc")
MAX_INDICES = 2**22  # sentence indices drawn at a time: 32 MB

Labels = NDArray[np.int64]
Indices = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds (n-1 in the denominator; None for a single seed)."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean and standard deviation of one value per seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Metrics:
    """Metrics of one model on one split; all but `loss` are fractions from 0 to 1 (MCC from -1).

    Attributes:
        num_examples: N.
        loss: mean cross-entropy, in nats.
        majority_rate: accuracy of always predicting the most frequent label.
        predicted_rates: fraction of the predictions in each class, (C,).
        collapsed: all predictions are the same class.
    """

    num_examples: int
    loss: float
    accuracy: float
    mcc: float
    majority_rate: float
    predicted_rates: tuple[float, ...]
    collapsed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        return asdict(self)


def measure(logits: NDArray[np.float32], labels: Labels, predictions: Labels) -> Metrics:
    """Return the metrics of (N, C) logits and (N,) predictions against (N,) labels."""
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    rates = np.bincount(predictions, minlength=logits.shape[1]) / len(labels)
    logits = logits.astype(np.float64)
    true_logits = logits[np.arange(len(labels)), labels]  # (N,)
    return Metrics(
        num_examples=len(labels),
        loss=float(np.mean(np.logaddexp.reduce(logits, axis=1) - true_logits)),
        accuracy=float(accuracy_score(labels, predictions)),
        mcc=float(matthews_corrcoef(labels, predictions)) if len(set(labels.tolist())) > 1 else 0.0,
        majority_rate=float(np.bincount(labels).max() / len(labels)),
        predicted_rates=tuple(float(rate) for rate in rates),
        collapsed=len(set(predictions.tolist())) == 1,
    )


def mcc_of_confusion(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the MCC (…,) of (…, C, C) confusion counts (Gorodkin 2004, eq. 8)."""
    c = counts.astype(np.float64)
    return _mcc(np.trace(c, axis1=-2, axis2=-1), c.sum(axis=-1), c.sum(axis=-2))


def _mcc(
    hits: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the MCC (…,) of counts of correct predictions (…,), labels (…, C) and predictions (…, C)."""
    total = predicted.sum(axis=-1)
    covariance = hits * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


def accuracy_of_confusion(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the accuracy (…,) of (…, C, C) confusion counts."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))


def bootstrap_draws(size: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield how often each of `size` sentences is drawn, (resamples, N), for `NUM_RESAMPLES` in all."""
    generator, chunk = np.random.default_rng(seed), max(1, MAX_INDICES // size)
    for first in range(0, NUM_RESAMPLES, chunk):
        count = min(chunk, NUM_RESAMPLES - first)
        index = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        yield np.bincount(index.ravel(), minlength=count * size).reshape(count, size)


class Bootstrap:
    """Bootstrap of M models on the same N sentences; every resample is shared by all models.

    Shared resamples pair the models: variation that is common to all models cancels in a difference or ratio.
    The models are fixed: the intervals do not cover the variation between seeds.

    Args:
        labels: (N,).
        predictions: M arrays (N,).

    Attributes:
        size: N.
        values: statistic (`accuracy` or `mcc`) -> (M,) on the sentences themselves.
        resampled: statistic -> (K, M).
    """

    def __init__(self, labels: Labels, predictions: Sequence[Labels], num_labels: int, seed: int = 0) -> None:
        self.size = size = len(labels)
        num_models = len(predictions)
        classes, stacked = np.arange(num_labels), np.stack(predictions, axis=1)  # (C,), (N, M)
        true, hits = labels[:, None] == classes, stacked == labels[:, None]  # (N, C), (N, M)
        predicted = (stacked[..., None] == classes).reshape(size, -1)  # (N, M·C)
        contributions = np.concatenate([true, hits, predicted], axis=1).astype(np.float32)

        def statistics(draws: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
            """Return statistic -> (resamples, M), from the draws of each sentence (resamples, N)."""
            sums = (draws.astype(np.float32) @ contributions).astype(np.float64)  # integers < 2^24: exact
            of_true, of_hits, of_predicted = np.split(sums, [num_labels, num_labels + num_models], axis=1)
            of_predicted = of_predicted.reshape(-1, num_models, num_labels)
            return {"accuracy": of_hits / size, "mcc": _mcc(of_hits, of_true[:, None], of_predicted)}

        self.values = {name: row[0] for name, row in statistics(np.ones((1, size), dtype=np.int64)).items()}
        parts = [statistics(draws) for draws in bootstrap_draws(size, seed)]
        self.resampled = {name: np.concatenate([part[name] for part in parts]) for name in STATISTICS}

    def mean(self, statistic: str, models: Indices) -> Interval:
        """Return the mean over `models`; the accuracy of a single one has Wilson's interval.

        The bootstrap's interval has no width if all or no predictions are right.
        """
        value, resampled = self._means(statistic, models)
        if statistic == "accuracy" and len(models) == 1:
            return wilson_interval(round(value * self.size), self.size)
        return percentile_interval(value, resampled)

    def difference(self, statistic: str, first: Indices, second: Indices) -> Interval:
        """Return the mean over the models `first` minus the mean over `second`."""
        value, resampled = self._means(statistic, first)
        other, resampled_other = self._means(statistic, second)
        return percentile_interval(value - other, resampled - resampled_other)

    def detectable(self, statistic: str, first: Indices, second: Indices) -> float:
        """Return the difference of the means that these sentences show with a power of `POWER`.

        A two-sided test at the level 1 - `CONFIDENCE`, with the bootstrap's standard error of the difference.
        """
        normal = NormalDist()
        errors = self._means(statistic, first)[1] - self._means(statistic, second)[1]
        return float((normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) * errors.std(ddof=1))

    def ratio(self, statistic: str, first: Indices, second: Indices) -> Interval | None:
        """Return the mean over the models `first` divided by the mean over `second`.

        None if more than `MAX_NONPOSITIVE` of the resampled denominators are not positive.
        """
        value, resampled = self._means(statistic, first)
        other, resampled_other = self._means(statistic, second)
        if np.mean(resampled_other <= 0) > MAX_NONPOSITIVE:
            return None
        infinite = np.copysign(np.inf, resampled)  # too few to reach an end of the interval
        positive = resampled_other > 0
        return percentile_interval(
            value / other, np.divide(resampled, resampled_other, out=infinite, where=positive)
        )

    def _means(self, statistic: str, models: Indices) -> tuple[float, NDArray[np.float64]]:
        value = float(self.values[statistic][list(models)].mean())
        return value, self.resampled[statistic][:, list(models)].mean(axis=1)


def wilson_interval(right: int, total: int) -> Interval:
    """Return a proportion with its score interval (Wilson 1927), which has a width at 0 and 1, too."""
    from scipy.stats import binomtest

    ends = binomtest(right, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(right / total, float(ends.low), float(ends.high))


def percentile_interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Return a value with the percentile interval of its (K,) resamples."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def measure_with_intervals(
    labels: Labels, logits: NDArray[np.float32], predictions: Labels
) -> tuple[Metrics, dict[str, list[float]]]:
    """Return the result of `measure` and the ends of `accuracy_interval` and `mcc_interval`."""
    sample = Bootstrap(labels, [predictions], logits.shape[1])
    intervals = {name: sample.mean(name, [0]) for name in STATISTICS}
    ends = {f"{name}_interval": [interval.low, interval.high] for name, interval in intervals.items()}
    return measure(logits, labels, predictions), ends


def mcnemar(labels: Labels, first: Labels, second: Labels) -> float:
    """Return the exact two-sided p of McNemar's (1947) test that two models have equally many errors."""
    from scipy.stats import binomtest

    first_correct, second_correct = first == labels, second == labels
    num_different = int((first_correct != second_correct).sum())
    if num_different == 0:
        return 1.0
    return float(binomtest(int((first_correct & ~second_correct).sum()), num_different).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of one family of tests, corrected by Holm's (1979) step-down method."""
    corrected = np.zeros(len(p_values))
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def best_threshold(probs: NDArray[np.float64], labels: Labels) -> float:
    """Return the threshold on the probability of class 1 with the highest MCC.

    Candidates are the midpoints between neighbouring probabilities whose accuracy reaches the majority rate:
    MCC alone would let a weak model predict the rare class for most sentences. Of equally good candidates the
    middle one is taken. The result is 0.5 if no candidate is better than 0.5.

    Args:
        probs: (N,) probability of class 1.
        labels: (N,) 0 or 1.
    """
    distinct = np.unique(probs)
    candidates = np.concatenate([[0.5], (distinct[:-1] + distinct[1:]) / 2])
    counts = []
    for label in (0, 1):
        of_label = np.sort(probs[labels == label])
        below = np.searchsorted(of_label, candidates)  # predicted 0 at each candidate
        counts.append(np.stack([below, len(of_label) - below], axis=-1))
    confusions = np.stack(counts, axis=-2)  # (candidates, 2, 2)
    allowed = accuracy_of_confusion(confusions) >= np.bincount(labels).max() / len(labels)
    allowed[0] = True  # 0.5 is the default
    scores = np.where(allowed, mcc_of_confusion(confusions), -np.inf)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return 0.5 if 0 in best else float(candidates[best[len(best) // 2]])


def indices_by_value(values: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return value -> the indices that have it, values in the order of their first index."""
    indices: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        indices.setdefault(value, []).append(index)
    return {value: np.array(group, dtype=np.int64) for value, group in indices.items()}
