"""How good predictions are, how sure one can be of it, and how two models differ.

Shapes: N sentences, C classes, S seeds (models of one group), K resamples.

MCC is the Matthews correlation, for more classes Gorodkin's R_K; a model that answers one class for
everything has MCC 0 by convention, as in scikit-learn. Intervals are percentile bootstraps over sentences.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


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
    true, predicted, total = c.sum(axis=-1), c.sum(axis=-2), c.sum(axis=(-2, -1))
    covariance = np.trace(c, axis1=-2, axis2=-1) * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


def accuracy_of_confusion(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the accuracy (…,) of (…, C, C) confusion counts."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))


STATISTICS = {"accuracy": accuracy_of_confusion, "mcc": mcc_of_confusion}


def point(statistic: str, labels: Labels, predictions: Labels, num_labels: int) -> float:
    """Return the `accuracy` or `mcc` of (N,) predictions."""
    return float(STATISTICS[statistic](confusion(labels, predictions, num_labels)))


def bootstrap(
    statistic: str, labels: Labels, runs: Sequence[Labels], num_labels: int, seed: int = 0
) -> Interval:
    """Return the mean over S runs of `accuracy` or `mcc`, with its interval over resampled sentences.

    Args:
        runs: S arrays (N,) of predictions for the same sentences.
    """
    return _bootstrap(statistic, labels, runs, None, num_labels, seed)


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
    return _bootstrap(statistic, labels, ours, theirs, num_labels, seed)


def _bootstrap(
    statistic: str,
    labels: Labels,
    ours: Sequence[Labels],
    theirs: Sequence[Labels] | None,
    num_labels: int,
    seed: int,
) -> Interval:
    from scipy.stats import bootstrap as scipy_bootstrap

    of_confusion = STATISTICS[statistic]

    def difference(index: Labels, axis: int = -1) -> NDArray[np.float64]:
        truth = labels[index]  # (…, N)

        def mean(runs: Sequence[Labels]) -> NDArray[np.float64]:
            return np.mean([of_confusion(confusion(truth, run[index], num_labels)) for run in runs], axis=0)

        return mean(ours) - (mean(theirs) if theirs is not None else 0.0)

    sentences = np.arange(len(labels))
    value = float(difference(sentences))
    if len(labels) < 2:
        return Interval(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a statistic that no resample changes has a point for its interval
        found = scipy_bootstrap(
            (sentences,),
            difference,
            n_resamples=NUM_RESAMPLES,
            batch=200,
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high))


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
