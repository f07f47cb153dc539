"""From logits to labels.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N sentences.

    Attributes:
        labels: (N,) indices into the classifier's label names.
        probs: (N, C).
        num_truncated: sentences that were cut to the longest that the classifier reads.
    """

    labels: NDArray[np.int64]
    probs: NDArray[np.float64]
    num_truncated: int

    @classmethod
    def of(cls, logits: NDArray[np.float32], threshold: float | None, num_truncated: int) -> Predictions:
        """Return what (N, C) logits say; `threshold` as `predict_labels` takes it."""
        probs = probabilities(logits)
        return cls(predict_labels(logits, threshold, probs), probs, num_truncated)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax of (N, C) logits."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=1, keepdims=True)


def predict_labels(
    logits: NDArray[np.float32], threshold: float | None, probs: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Return (N,) labels: the likeliest class; of two, 1 where its probability is ≥ `threshold`.

    Args:
        probs: `probabilities(logits)`, where they are known already.
    """
    if threshold is None:
        return logits.argmax(axis=1).astype(np.int64)
    assert logits.shape[1] == 2, "a threshold decides between two classes"
    return ((probabilities(logits) if probs is None else probs)[:, 1] >= threshold).astype(np.int64)
