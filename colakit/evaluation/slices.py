"""Where models are good and where not: their MCC on parts of a split, such as a source or a phenomenon.

Shapes: N sentences of the split, n of a part.

Parts may overlap and are small, so every figure here is uncertain and the many comparisons invite chance
finds: the intervals are 95 % each, not all together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.comparison import Answers, members
from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Spread

FEW, FEW_OTHERS = 30, 5
"""A part of fewer sentences, or of fewer outside its commonest label, is flagged: its MCC, with a standard
error of about 0.2 or more, hangs on a handful of answers."""


@dataclass(frozen=True)
class PartScore:
    """An experiment's MCC on a part: over its seeds, and of their mean over resampled sentences."""

    group: str
    mcc: Spread
    interval: Interval


@dataclass(frozen=True)
class PartRow:
    """All experiments on one part.

    Attributes:
        num_examples: n.
        majority_rate: accuracy of always answering the part's commonest label; None where n is 0.
        few: whether n is below `FEW`, or the sentences outside the commonest label are below `FEW_OTHERS`.
        scores: one an experiment; empty where all labels are one, for which MCC is not defined.
    """

    name: str
    num_examples: int
    majority_rate: float | None
    few: bool
    scores: tuple[PartScore, ...]


def slice_scores(
    labels: Labels, answers: Sequence[Answers], parts: Mapping[str, NDArray[np.int64]]
) -> tuple[PartRow, ...]:
    """Return a row for each part of a split.

    Args:
        labels: (N,).
        answers: of every model, to the N sentences.
        parts: name -> (n,) numbers of its sentences.
    """
    return tuple(_row(name, labels[index], answers, index) for name, index in parts.items())


def _row(name: str, labels: Labels, answers: Sequence[Answers], index: NDArray[np.int64]) -> PartRow:
    size, commonest = len(index), int(np.bincount(labels, minlength=1).max())
    scores: tuple[PartScore, ...] = ()
    if len(np.unique(labels)) > 1:
        predictions = [answer.predictions[index] for answer in answers]
        sample = Bootstrap(labels, predictions, answers[0].logits.shape[1])
        scores = tuple(
            PartScore(group, Spread.of(sample.values["mcc"][places].tolist()), sample.mean("mcc", places))
            for group, places in members(answers).items()
        )
    few = size < FEW or size - commonest < FEW_OTHERS
    return PartRow(name, size, commonest / size if size else None, few, scores)


def parts_by(values: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return value -> the numbers of the sentences that have it, in the order in which values were found."""
    found: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(value, []).append(number)
    return {value: np.array(numbers, dtype=np.int64) for value, numbers in found.items()}
