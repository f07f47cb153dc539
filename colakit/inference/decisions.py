"""Probabilities and predicted labels from logits.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colakit.errors import ColakitError
from colakit.utils.console import Reporter


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
        temperature: float = 1.0,
    ) -> Predictions:
        """Return the predictions for (N, C) logits; `threshold` and `temperature` as in `predict_labels`."""
        probs = probabilities(logits, temperature)
        return cls(predict_labels(logits, threshold, probs=probs), probs, label_names, num_truncated)

    @property
    def names(self) -> list[str]:
        """The predicted label of each sentence, by name."""
        return [self.label_names[label] for label in self.labels]


def as_list(sentences: str | Sequence[str]) -> list[str]:
    """Return a list of sentences; a single string is one sentence."""
    return [sentences] if isinstance(sentences, str) else list(sentences)


def require_labels(
    label_names: tuple[str, ...], of_data: tuple[str, ...], where: str, reporter: Reporter
) -> None:
    """Raise `ColakitError` unless the labels of the model at `where` are those of the dataset.

    A model that names no labels is taken to number them as the dataset does, with a warning.
    """
    unnamed = tuple(f"LABEL_{i}" for i in range(len(of_data)))  # of a folder that PEFT wrote
    if label_names not in (of_data, unnamed):
        raise ColakitError(
            f"{where}: its labels are {', '.join(label_names)}; the dataset's are {', '.join(of_data)}",
            hint="Model and dataset must be of one task.",
        )
    if label_names == unnamed != of_data:
        classes = ", ".join(f"{i} for {name}" for i, name in enumerate(of_data))
        reporter.warn(f"{where}: names no labels; its classes are taken as {classes}")


def check_threshold(threshold: float, num_labels: int) -> None:
    """Raise `ColakitError` unless a model with `num_labels` classes can have a threshold."""
    if num_labels != 2:
        raise ColakitError(
            f"threshold {threshold}: the model has {num_labels} labels; a threshold is for two",
            hint="Leave it out: the most probable label is predicted.",
        )


def probabilities(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the softmax of (N, C) logits, divided by the temperature of the calibration."""
    scaled = (logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)) / temperature
    shifted = np.exp(scaled)
    return shifted / shifted.sum(axis=1, keepdims=True)


def predict_labels(
    logits: NDArray[np.float32],
    threshold: float | None,
    temperature: float = 1.0,
    probs: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return (N,) labels: the argmax or, with a threshold, 1 where the probability of class 1 reaches it.

    Args:
        threshold: for two classes only.
        temperature: of the probabilities.
        probs: `probabilities(logits, temperature)`, if already computed.

    Raises:
        ColakitError: if there is a threshold and not two classes.
    """
    if threshold is None:
        return logits.argmax(axis=1).astype(np.int64)
    check_threshold(threshold, logits.shape[1])
    probs = probabilities(logits, temperature) if probs is None else probs
    return (probs[:, 1] >= threshold).astype(np.int64)


def raw_threshold(threshold: float | None, temperature: float) -> float | None:
    """Return the threshold on uncalibrated probabilities that gives the same labels."""
    from scipy.special import expit, logit

    return None if threshold is None else float(expit(temperature * logit(threshold)))
