"""How good predictions are, how sure one can be of it, and how two models differ.

Shapes: N sentences, C classes, M models, S seeds (models of one group), K resamples.

MCC is the Matthews correlation, for more classes Gorodkin's R_K; a model that answers one class for
everything has MCC 0 by convention, as in scikit-learn. Intervals are percentile bootstraps over sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MAX_NOT_ABOVE = 0.01  # share of resamples; less than (1 - CONFIDENCE) / 2
MAX_DRAWN = 2**22  # sentences drawn at a time: 32 MB of indices

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and standard deviation (n-1; None for a single seed)."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value a seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one split; all but `loss` are shares from 0 to 1 (MCC from -1).

    Attributes:
        num_examples: N.
        loss: mean cross-entropy, in nats.
        majority_rate: accuracy of always answering the commonest label.
        predicted_rates: share of the predictions that fall on each class, (C,).
        collapsed: whether every prediction is the same class.
    """

    num_examples: int
    loss: float
    accuracy: float
    mcc: float
    majority_rate: float
    predicted_rates: tuple[float, ...]
    collapsed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


def measure(logits: NDArray[np.float32], labels: Labels, predictions: Labels) -> Metrics:
    """Return the figures of (N, C) logits and the (N,) predictions made from them, against (N,) labels."""
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    num_labels = logits.shape[1]
    rates = np.bincount(predictions, minlength=num_labels) / len(labels)
    wide = logits.astype(np.float64)
    true_logits = wide[np.arange(len(labels)), labels]  # (N,)
    return Metrics(
        num_examples=len(labels),
        loss=float(np.mean(np.logaddexp.reduce(wide, axis=1) - true_logits)),
        accuracy=float(accuracy_score(labels, predictions)),
        mcc=float(matthews_corrcoef(labels, predictions)) if len(set(labels.tolist())) > 1 else 0.0,
        majority_rate=float(np.bincount(labels).max() / len(labels)),
        predicted_rates=tuple(float(rate) for rate in rates),
        collapsed=len(set(predictions.tolist())) == 1,
    )


def confusion(labels: Labels, predictions: Labels, num_labels: int) -> NDArray[np.int64]:
    """Return (…, C, C) counts, true class by predicted class, of (…, N) labels and predictions."""
    cells = labels * num_labels + predictions
    flat = cells.reshape(-1, cells.shape[-1])
    rows = np.arange(len(flat))[:, None] * num_labels**2
    counts = np.bincount((flat + rows).ravel(), minlength=len(flat) * num_labels**2)
    return counts.reshape(*cells.shape[:-1], num_labels, num_labels)


def mcc_of_confusion(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the MCC (…,) of (…, C, C) confusion counts (Gorodkin 2004, eq. 8)."""
    c = counts.astype(np.float64)
    return _mcc(np.trace(c, axis1=-2, axis2=-1), c.sum(axis=-1), c.sum(axis=-2))


def _mcc(
    hits: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the MCC (…,) of counts of right answers (…,), true labels (…, C) and predictions (…, C)."""
    total = predicted.sum(axis=-1)
    covariance = hits * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


def accuracy_of_confusion(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the accuracy (…,) of (…, C, C) confusion counts."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))


STATISTICS = {"accuracy": accuracy_of_confusion, "mcc": mcc_of_confusion}


def point(statistic: str, labels: Labels, predictions: Labels, num_labels: int) -> float:
    """Return the `accuracy` or `mcc` of (N,) predictions."""
    return float(STATISTICS[statistic](confusion(labels, predictions, num_labels)))


class Bootstrap:
    """M models on the same sentences, and on resamples of these that are drawn once for all models.

    That the resamples are shared is what pairs the models: what makes sentences hard for all cancels in a
    difference or a ratio. The models are held fixed: intervals do not speak of seeds that were not run.

    Args:
        labels: (N,).
        predictions: M arrays (N,).

    Attributes:
        values: statistic (`accuracy`, `mcc`) -> (M,).
        drawn: statistic -> (K, M).
    """

    def __init__(self, labels: Labels, predictions: Sequence[Labels], num_labels: int, seed: int = 0) -> None:
        counts = confusion(
            np.broadcast_to(labels, (len(predictions), len(labels))), np.stack(predictions), num_labels
        )
        self.values = {name: of_confusion(counts) for name, of_confusion in STATISTICS.items()}
        chunks = list(_resample(labels, np.stack(predictions), num_labels, seed))
        self.drawn = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in STATISTICS}

    def mean(self, statistic: str, models: Sequence[int]) -> Interval:
        """Return the mean over `models`."""
        return _interval(*self._means(statistic, models))

    def difference(self, statistic: str, ours: Sequence[int], theirs: Sequence[int]) -> Interval:
        """Return the mean over `ours` minus that over `theirs`."""
        value, drawn = self._means(statistic, ours)
        other, drawn_other = self._means(statistic, theirs)
        return _interval(value - other, drawn - drawn_other)

    def ratio(self, statistic: str, ours: Sequence[int], theirs: Sequence[int]) -> Interval | None:
        """Return the mean over `ours` as a share of that over `theirs`.

        None where more than `MAX_NOT_ABOVE` of the resamples put the latter at or below 0: a share of what
        may be nothing has no size.
        """
        value, drawn = self._means(statistic, ours)
        other, drawn_other = self._means(statistic, theirs)
        if np.mean(drawn_other <= 0) > MAX_NOT_ABOVE:
            return None
        limit = np.copysign(np.inf, drawn)  # too few to reach an end of the interval
        return _interval(value / other, np.divide(drawn, drawn_other, out=limit, where=drawn_other > 0))

    def _means(self, statistic: str, models: Sequence[int]) -> tuple[float, NDArray[np.float64]]:
        value = float(self.values[statistic][list(models)].mean())
        return value, self.drawn[statistic][:, list(models)].mean(axis=1)


def _resample(
    labels: Labels, predictions: Labels, num_labels: int, seed: int
) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Yield, for some resamples at a time, statistic -> (resamples, M), of (M, N) predictions.

    How often each sentence was drawn, (resamples, N), times what each sentence adds to the counts, is all
    counts at once.
    """
    num_models, size = predictions.shape
    classes = np.arange(num_labels)
    true, predicted = labels[:, None] == classes, predictions.T[..., None] == classes  # (N, C), (N, M, C)
    hits = (predictions == labels).T  # (N, M)
    added = np.concatenate([true, hits, predicted.reshape(size, -1)], axis=1).astype(np.float32)
    generator, rows = np.random.default_rng(seed), max(1, MAX_DRAWN // size)
    for first in range(0, NUM_RESAMPLES, rows):
        count = min(rows, NUM_RESAMPLES - first)
        index = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        times = np.bincount(index.ravel(), minlength=count * size).reshape(count, size)
        sums = (times.astype(np.float32) @ added).astype(np.float64)  # whole numbers below 2^24: exact
        of_true, of_hits, of_predicted = np.split(sums, [num_labels, num_labels + num_models], axis=1)
        of_predicted = of_predicted.reshape(count, num_models, num_labels)
        yield {"accuracy": of_hits / size, "mcc": _mcc(of_hits, of_true[:, None], of_predicted)}


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    """Return a figure with the percentile interval of its resamples, (K,)."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def bootstrap(
    statistic: str, labels: Labels, runs: Sequence[Labels], num_labels: int, seed: int = 0
) -> Interval:
    """Return the mean over S runs of `accuracy` or `mcc`, with its interval over resampled sentences.

    Args:
        runs: S arrays (N,) of predictions for the same sentences.
    """
    return Bootstrap(labels, runs, num_labels, seed).mean(statistic, range(len(runs)))


def paired_difference(
    statistic: str,
    labels: Labels,
    ours: Sequence[Labels],
    theirs: Sequence[Labels],
    num_labels: int,
    seed: int = 0,
) -> Interval:
    """Return how much higher `ours` scores than `theirs` (means over their runs), with its interval.

    Each resample draws the same sentences for both, which cancels what makes sentences hard for either.
    """
    both = Bootstrap(labels, [*ours, *theirs], num_labels, seed)
    return both.difference(statistic, range(len(ours)), range(len(ours), len(ours) + len(theirs)))


def mcnemar(labels: Labels, ours: Labels, theirs: Labels) -> float:
    """Return the exact two-sided p of McNemar's test: are the two models' errors equally many?

    Only sentences on which exactly one of the models is right count (McNemar 1947).
    """
    from scipy.stats import binomtest

    only_ours = int(((ours == labels) & (theirs != labels)).sum())
    only_theirs = int(((ours != labels) & (theirs == labels)).sum())
    if only_ours + only_theirs == 0:
        return 1.0
    return float(binomtest(only_ours, only_ours + only_theirs).pvalue)


def best_threshold(probs: NDArray[np.float64], labels: Labels) -> float:
    """Return the threshold on the probability of class 1 with the highest MCC.

    Only thresholds that are right at least as often as the majority answer are candidates: MCC alone would
    have a weak model answer the rare class to most sentences. Candidates lie halfway between neighbouring
    probabilities; the middle of the best ones wins, so that a single sentence does not decide. Where nothing
    beats it, the threshold stays 0.5.

    Args:
        probs: (N,) probability of class 1.
        labels: (N,) 0 or 1.
    """
    distinct = np.unique(probs)
    candidates = np.concatenate([[0.5], (distinct[:-1] + distinct[1:]) / 2])
    by_class = [np.sort(probs[labels == true]) for true in (0, 1)]
    below = [np.searchsorted(of_class, candidates) for of_class in by_class]  # predicted 0 at each candidate
    counts = np.stack(
        [np.stack([n, len(of_class) - n], axis=-1) for n, of_class in zip(below, by_class, strict=True)],
        axis=-2,
    )  # (candidates, 2, 2)
    majority_rate = np.bincount(labels).max() / len(labels)
    allowed = accuracy_of_confusion(counts) >= majority_rate
    allowed[0] = True  # 0.5 is what one gets without tuning
    scores = np.where(allowed, mcc_of_confusion(counts), -np.inf)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    if 0 in best:
        return 0.5
    return float(candidates[best[len(best) // 2]])
