"""Comparison of models: each model, each experiment (mean over seeds), and each pair of experiments.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.metrics import (
    STATISTICS,
    Bootstrap,
    Interval,
    Labels,
    Metrics,
    Spread,
    indices_by_value,
    mcnemar,
    measure,
)

NOT_IN_EXPERIMENT = (
    *("seed", "device", "precision", "cpu_kernels", "cuda_graphs", "cache"),
    *("generate", "predict", "evaluate", "plot", "finetune.frozen_cache_mib"),
    # names of files; their content counts
    *("base", "data.path", "data.splits", "transfer.text", "transfer.language_model", "distill.teacher"),
    *("pretrain.text", "pretrain.init_from", "pretrain.tokenizer"),
)


def teachers_of(origin: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a student's records of its teachers (path, fingerprint, experiment); empty for other models."""
    return list(origin.get("teachers") or [])


def fold_of(origin: Mapping[str, Any]) -> str | None:
    """Return the fold of train (written i/k) that a fine-tuned model left out; None for other models."""
    if origin.get("command") != "finetune":  # a student may record the `finetune` settings of its config
        return None
    return ((origin.get("settings") or {}).get("finetune") or {}).get("leave_out")


def experiment_key(origin: Mapping[str, Any]) -> str:
    """Return a hash that runs share if they differ only in seed and fold, and in their teachers' seeds.

    The k runs that each leave out one of k folds share a key; runs on all of train have another. Null
    settings are ignored. Data, base and transfer text count by content, not by path.
    """
    settings = _experiment_settings(origin.get("settings") or {})
    if (fold := fold_of(origin)) is not None:
        settings["finetune"] = {**settings["finetune"], "leave_out": f"one of {fold.partition('/')[2]}"}
    content = {
        "base": origin.get("base_fingerprint") or origin.get("base"),
        "data": origin.get("data"),
        "teachers": sorted(str(teacher.get("experiment")) for teacher in teachers_of(origin)),
    }
    transfer = (origin.get("settings") or {}).get("transfer") or {}
    if transfer.get("text") or transfer.get("language_model"):
        content["transfer"] = (origin.get("transfer") or {}).get("fingerprint")
    text = json.dumps([origin.get("command"), settings, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _experiment_settings(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    return {
        name: _experiment_settings(value, f"{section}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None and section + name not in NOT_IN_EXPERIMENT
    }


@dataclass(frozen=True)
class ModelInfo:
    """A model in a comparison.

    Attributes:
        name: unique among the compared models.
        kind: such as `distill (lstm)`.
        experiment: `experiment_key` of its origin.
        fold: of train that it left out, if any.
        teachers: fingerprints of the models it was distilled from.
        num_parameters: all, frozen ones included.
    """

    name: str
    kind: str
    experiment: str
    seed: int | None
    fold: str | None = None
    fingerprint: str = ""
    teachers: tuple[str, ...] = ()
    num_parameters: int = 0
    threshold: float | None = None


@dataclass(frozen=True)
class ModelPredictions:
    """Predictions of one model on one split; `group` is the name of its experiment."""

    model: str
    group: str
    seed: int | None
    logits: NDArray[np.float32]  # (N, C)
    predictions: Labels  # (N,)
    fold: str | None = None


def group_names(models: Sequence[ModelInfo]) -> list[str]:
    """Return the name of each model's experiment: its kind, with its first model's name if kinds repeat.

    A model that repeats the experiment, seed and fold of an earlier one is an experiment of its own.
    """
    seen: set[tuple[str, int | None, str | None]] = set()
    keys: list[str] = []
    for model in models:
        run = (model.experiment, model.seed, model.fold)
        repeated = model.seed is None or run in seen
        seen.add(run)
        keys.append(f"{model.experiment} {model.name}" if repeated else model.experiment)
    first = dict(reversed(list(zip(keys, models, strict=True))))
    kinds = [model.kind for model in first.values()]
    return [
        f"{first[key].kind} [{first[key].name}]" if kinds.count(first[key].kind) > 1 else first[key].kind
        for key in keys
    ]


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
        mcnemar_p: exact p, not corrected for multiple tests, of each pair of models with the same seed and
            fold; of the two models if each experiment has one.
    """

    first: str
    second: str
    accuracy: Interval
    mcc: Interval
    mcnemar_p: tuple[float, ...]


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
    pairs = (_pair_row(labels, predictions, sample, *names) for names in itertools.combinations(groups, 2))
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
    if not matched and len(firsts) == len(seconds) == 1:
        matched = [(firsts[0], seconds[0])]
    accuracy, mcc = (sample.difference(name, groups[first], groups[second]) for name in STATISTICS)
    p_values = tuple(mcnemar(labels, a.predictions, b.predictions) for a, b in matched)
    return PairRow(first, second, accuracy, mcc, p_values)
