"""Comparison of models: each model, each experiment (mean over seeds), and each pair of experiments.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.metrics import (
    STATISTICS,
    Bootstrap,
    Interval,
    Labels,
    Metrics,
    Spread,
    holm,
    indices_by_value,
    mcnemar,
    measure,
)


@dataclass(frozen=True)
class ModelPredictions:
    """Predictions of one model on one split.

    Attributes:
        group: name of its experiment.
        temperature: of its calibrated probabilities.
    """

    model: str
    group: str
    seed: int | None
    logits: NDArray[np.float32]  # (N, C)
    predictions: Labels  # (N,)
    fold: str | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class ModelRow:
    """Metrics of a model on a split, with bootstrap intervals over the sentences."""

    model: str
    group: str
    seed: int | None
    metrics: Metrics
    accuracy: Interval
    mcc: Interval
    fold: str | None = None


@dataclass(frozen=True)
class GroupRow:
    """Mean and standard deviation (n-1; None for one model) over the seeds and folds of one experiment.

    Attributes:
        num_seeds: number of models, also of those that differ only in the fold.
        num_folds: number of distinct folds that were left out; 0 if none was.
    """

    group: str
    num_seeds: int
    accuracy_mean: float
    accuracy_sd: float | None
    mcc_mean: float
    mcc_sd: float | None
    majority_rate: float
    num_collapsed: int
    num_folds: int = 0


@dataclass(frozen=True)
class PairRow:
    """Difference between two experiments on the same sentences, first minus second.

    Attributes:
        accuracy, mcc: differences of the means over seeds, with paired bootstrap intervals (`Bootstrap`).
        detectable_mcc: difference of MCC that would be found with a power of 80 % (`Bootstrap.detectable`).
        mcnemar_p: exact p of each pair of models with the same seed and fold, or of which one has no seed; of
            the two models if each experiment has one.
        corrected_p: the same, corrected by Holm's method over all tests on the split.
    """

    first: str
    second: str
    accuracy: Interval
    mcc: Interval
    detectable_mcc: float
    mcnemar_p: tuple[float, ...]
    corrected_p: tuple[float, ...] = ()


@dataclass(frozen=True)
class SplitComparison:
    """Comparison of all models on one split."""

    split: str
    models: tuple[ModelRow, ...]
    groups: tuple[GroupRow, ...]
    pairs: tuple[PairRow, ...]


def compare(split: str, labels: Labels, predictions: Sequence[ModelPredictions]) -> SplitComparison:
    """Measure every model, every experiment and every pair of experiments on one labelled split."""
    sample = Bootstrap(labels, [model.predictions for model in predictions], predictions[0].logits.shape[1])
    models = tuple(
        ModelRow(
            model.model,
            model.group,
            model.seed,
            measure(model.logits, labels, model.predictions),
            sample.mean("accuracy", [index]),
            sample.mean("mcc", [index]),
            model.fold,
        )
        for index, model in enumerate(predictions)
    )
    groups = group_indices(predictions)
    rows = (_group_row(name, [models[i] for i in indices]) for name, indices in groups.items())
    pairs = [_pair_row(labels, predictions, sample, *names) for names in itertools.combinations(groups, 2)]
    corrected = iter(holm([p for pair in pairs for p in pair.mcnemar_p]))
    pairs = [replace(pair, corrected_p=tuple(islice(corrected, len(pair.mcnemar_p)))) for pair in pairs]
    return SplitComparison(split, models, tuple(rows), tuple(pairs))


def group_indices(predictions: Sequence[ModelPredictions]) -> dict[str, NDArray[np.int64]]:
    """Return experiment -> indices of its models, experiments in the order of their first model."""
    return indices_by_value([model.group for model in predictions])


def _group_row(name: str, models: Sequence[ModelRow]) -> GroupRow:
    accuracy, mcc = (Spread.of([getattr(row.metrics, key) for row in models]) for key in STATISTICS)
    return GroupRow(
        group=name,
        num_seeds=len(models),
        accuracy_mean=accuracy.mean,
        accuracy_sd=accuracy.sd,
        mcc_mean=mcc.mean,
        mcc_sd=mcc.sd,
        majority_rate=models[0].metrics.majority_rate,
        num_collapsed=sum(row.metrics.collapsed for row in models),
        num_folds=len({row.fold for row in models if row.fold is not None}),
    )


def _pair_row(
    labels: Labels, predictions: Sequence[ModelPredictions], sample: Bootstrap, first: str, second: str
) -> PairRow:
    groups = group_indices(predictions)
    firsts, seconds = ([predictions[i] for i in groups[name]] for name in (first, second))
    matched = [
        (a, b) for a in firsts for b in seconds if a.seed is not None and (a.seed, a.fold) == (b.seed, b.fold)
    ]
    unseeded = any(len(group) == 1 and group[0].seed is None for group in (firsts, seconds))
    if unseeded or (not matched and len(firsts) == len(seconds) == 1):
        matched = list(itertools.product(firsts, seconds))
    accuracy, mcc = (sample.difference(name, groups[first], groups[second]) for name in STATISTICS)
    p_values = tuple(mcnemar(labels, a.predictions, b.predictions) for a, b in matched)
    detectable = sample.detectable("mcc", groups[first], groups[second])
    return PairRow(first, second, accuracy, mcc, detectable, p_values)
