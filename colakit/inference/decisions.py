"""Probabilities and predicted labels from logits.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colakit.errors import ColakitError


@dataclass(frozen=True)
class Predictions:
    """Predictions for N sentences."""

    labels: NDArray[np.int64]  # (N,), indices into `label_names`
    probs: NDArray[np.float64]  # (N, C)
    label_names: tuple[str, ...]  # C names
    num_truncated: int  # sentences truncated to the classifier's `max_tokens`

    @classmethod
    def of(
        cls,
        logits: NDArray[np.float32],
        label_names: tuple[str, ...],
        threshold: float | None,
        num_truncated: int,
    ) -> Predictions:
        """Return the predictions for (N, C) logits; `threshold` as in `predict_labels`."""
        probs = probabilities(logits)
        return cls(predict_labels(logits, threshold, probs), probs, label_names, num_truncated)

    @property
    def names(self) -> list[str]:
        """The predicted label of each sentence, by name."""
        return [self.label_names[label] for label in self.labels]


def as_list(sentences: str | Sequence[str]) -> list[str]:
    """Return a list of sentences; a single string is one sentence."""
    return [sentences] if isinstance(sentences, str) else list(sentences)


def check_threshold(threshold: float, num_labels: int) -> None:
    """Raise `ColakitError` unless a model with `num_labels` classes can have a threshold."""
    if num_labels != 2:
        raise ColakitError(
            f"threshold {threshold}: the model has {num_labels} labels; a threshold is for two",
            hint="Leave it out: the most probable label is predicted.",
        )


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax of (N, C) logits."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=1, keepdims=True)


def predict_labels(
    logits: NDArray[np.float32], threshold: float | None, probs: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Return (N,) labels: the argmax or, with a threshold, 1 where the probability of class 1 reaches it.

    Args:
        threshold: for two classes only.
        probs: `probabilities(logits)`, if already computed.

    Raises:
        ColakitError: if there is a threshold and not two classes.
    """
    if threshold is None:
        return logits.argmax(axis=1).astype(np.int64)
    check_threshold(threshold, logits.shape[1])
    return ((probabilities(logits) if probs is None else probs)[:, 1] >= threshold).astype(np.int64)
