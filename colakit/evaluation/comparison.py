"""Models side by side: grouped over seeds, and paired with each other.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Metrics, mcnemar, measure

NOT_THE_EXPERIMENT = (
    *("seed", "device", "precision", "cpu_kernels", "cuda_graphs", "cache"),
    *("generate", "predict", "evaluate", "plot", "finetune.frozen_cache_mib"),
)


def teachers_of(origin: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a student records of its teachers (path, fingerprint, experiment); empty if it had none.

    One teacher stands under `teacher`, several under `teachers`.
    """
    one = origin.get("teacher")
    return list(origin.get("teachers") or ([one] if one else []))


def fold_of(origin: Mapping[str, Any]) -> str | None:
    """Return the fold of train, written i/k, that a tuned model was not trained on by its own record."""
    if origin.get("command") != "finetune":  # a student may have been given the settings of its teacher
        return None
    return ((origin.get("settings") or {}).get("finetune") or {}).get("leave_out")


def _told(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return the settings that make an experiment, in their sections, nulls left out."""
    return {
        name: _told(value, f"{section}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None and section + name not in NOT_THE_EXPERIMENT
    }


def experiment_key(origin: Mapping[str, Any]) -> str:
    """Return a key that runs share when they differ in nothing but seed and fold (and their teachers').

    Runs that leave out one of five folds are one experiment, but not that of runs on all of train. A setting
    that is null is as one that is not there: an older version may not have had it.
    """
    settings = _told(origin.get("settings") or {})
    if (fold := fold_of(origin)) is not None:
        settings["finetune"] = {**settings["finetune"], "leave_out": f"one of {fold.partition('/')[2]}"}
    if "distill" in settings:
        settings["distill"] = {k: v for k, v in settings["distill"].items() if k != "teacher"}
    taught_by = sorted(str(teacher.get("experiment")) for teacher in teachers_of(origin))
    teacher = (taught_by if len(taught_by) > 1 else taught_by[0]) if taught_by else None
    text = json.dumps([origin.get("command"), origin.get("base"), settings, teacher], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Entrant:
    """A model in a comparison.

    Attributes:
        model: how people call it; unlike any other's.
        kind: what sort of model it is, such as `distill (lstm)`.
        key: of its experiment.
        seed: None where it is unknown.
        fold: of train that it left out, if it did.
    """

    model: str
    kind: str
    key: str
    seed: int | None
    fold: str | None = None


def group_names(entrants: Sequence[Entrant]) -> list[str]:
    """Return for each model the name of the experiment that it is a seed, or a fold, of.

    A second model with a key, seed and fold that were there before is no second seed, but an experiment of
    its own. Experiments of one kind are told apart by their first model's name.
    """
    seen: set[tuple[str, int | None, str | None]] = set()
    keys: list[str] = []
    for entrant in entrants:
        which = (entrant.key, entrant.seed, entrant.fold)
        repeated = entrant.seed is None or which in seen
        seen.add(which)
        keys.append(f"{entrant.key} {entrant.model}" if repeated else entrant.key)
    first = dict(reversed(list(zip(keys, entrants, strict=True))))
    kinds = [entrant.kind for entrant in first.values()]
    return [
        f"{first[key].kind} [{first[key].model}]" if kinds.count(first[key].kind) > 1 else first[key].kind
        for key in keys
    ]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest tails of `paths` that tell them apart."""
    absolute = [path.absolute().parts for path in paths]
    longest = max((len(parts) for parts in absolute), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(parts[-depth:]) for parts in absolute]
        if len(set(names)) == len(set(absolute)):
            return names
    return [str(path) for path in paths]


@dataclass(frozen=True)
class Answers:
    """What one model says about one split.

    Attributes:
        model: how people call the model.
        group: how people call the experiment it is one seed of.
        seed: None where it is unknown.
        logits: (N, C).
        predictions: (N,).
        fold: of train that the model left out, if it did.
    """

    model: str
    group: str
    seed: int | None
    logits: NDArray[np.float32]
    predictions: Labels
    fold: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """A model's figures on a split, with bootstrap intervals over its sentences."""

    model: str
    group: str
    seed: int | None
    metrics: Metrics
    accuracy: Interval
    mcc: Interval
    fold: str | None = None


@dataclass(frozen=True)
class GroupRow:
    """Mean and standard deviation (n-1; None for a single one) over the seeds and folds of one experiment.

    Attributes:
        num_seeds: its models; those that differ in the fold are counted, too.
        num_folds: that they left out, one each; 0 where they left out none.
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
    """How much better one experiment is than another on the same sentences.

    Attributes:
        accuracy, mcc: differences of the means over seeds, with paired bootstrap intervals over sentences;
            the seeds are held fixed, so the intervals do not speak of seeds that were not run.
        mcnemar_p: exact p, uncorrected, of each pair of models with equal seeds and folds, or of the only
            two.
    """

    first: str
    second: str
    accuracy: Interval
    mcc: Interval
    mcnemar_p: tuple[float, ...]


@dataclass(frozen=True)
class SplitComparison:
    """All that `compare` finds about one split."""

    split: str
    models: tuple[ModelRow, ...]
    groups: tuple[GroupRow, ...]
    pairs: tuple[PairRow, ...]


def compare(split: str, labels: Labels, answers: Sequence[Answers]) -> SplitComparison:
    """Measure every model, every group of seeds, and every pair of groups on one labelled split."""
    sample = Bootstrap(labels, [answer.predictions for answer in answers], answers[0].logits.shape[1])
    models = tuple(_model_row(labels, answer, sample, place) for place, answer in enumerate(answers))
    groups = members(answers)
    pairs = tuple(
        _pair_row(labels, answers, sample, first, second)
        for first, second in itertools.combinations(groups.items(), 2)
    )
    return SplitComparison(split, models, tuple(_group_row(name, models) for name in groups), pairs)


def members(answers: Sequence[Answers]) -> dict[str, list[int]]:
    """Return group -> where the answers of its models stand, in the order in which groups were found."""
    found: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        found.setdefault(answer.group, []).append(place)
    return found


def _model_row(labels: Labels, answer: Answers, sample: Bootstrap, place: int) -> ModelRow:
    metrics = measure(answer.logits, labels, answer.predictions)
    accuracy, mcc = sample.mean("accuracy", [place]), sample.mean("mcc", [place])
    return ModelRow(answer.model, answer.group, answer.seed, metrics, accuracy, mcc, answer.fold)


def _group_row(name: str, models: Sequence[ModelRow]) -> GroupRow:
    members = [row.metrics for row in models if row.group == name]
    folds = {row.fold for row in models if row.group == name and row.fold is not None}
    accuracies, mccs = [m.accuracy for m in members], [m.mcc for m in members]
    return GroupRow(
        group=name,
        num_seeds=len(members),
        accuracy_mean=fmean(accuracies),
        accuracy_sd=stdev(accuracies) if len(members) > 1 else None,
        mcc_mean=fmean(mccs),
        mcc_sd=stdev(mccs) if len(members) > 1 else None,
        majority_rate=members[0].majority_rate,
        num_collapsed=sum(m.collapsed for m in members),
        num_folds=len(folds),
    )


def _pair_row(
    labels: Labels,
    answers: Sequence[Answers],
    sample: Bootstrap,
    first: tuple[str, list[int]],
    second: tuple[str, list[int]],
) -> PairRow:
    places, other_places = first[1], second[1]
    accuracy, mcc = (sample.difference(name, places, other_places) for name in ("accuracy", "mcc"))
    ours, theirs = [answers[i] for i in places], [answers[i] for i in other_places]
    matched = [
        (a, b) for a in ours for b in theirs if a.seed is not None and (a.seed, a.fold) == (b.seed, b.fold)
    ]
    if not matched and len(ours) == len(theirs) == 1:
        matched = [(ours[0], theirs[0])]
    p_values = tuple(mcnemar(labels, a.predictions, b.predictions) for a, b in matched)
    return PairRow(first[0], second[0], accuracy, mcc, p_values)
