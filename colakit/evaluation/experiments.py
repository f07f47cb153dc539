"""Experiments: runs that differ only in seed and fold, and the names that tell experiments apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colakit.config.paths import PATHS

NOT_IN_EXPERIMENT = {
    *("seed", "device", "precision", "cpu_kernels", "cuda_graphs", "track"),
    *("generate", "predict", "serve", "evaluate", "plot", "sweep"),
    *("evaluate_dev", "finetune.frozen_cache_mib"),
    *PATHS,  # names of files; their content counts
}

SECTIONS = {
    "finetune": ("data", "lora", "finetune"),
    "distill": ("data", "lora", "finetune", "student", "student_training", "distill", "transfer"),
    "train-scratch": ("data", "student", "student_training", "distill", "transfer", "train_scratch"),
    "baseline": ("data", "baseline"),
}
"""Sections that a command reads. The sampler of `distill` is tuned by `lora` and `finetune`; the steps of
`train-scratch` follow from `distill` and `transfer`."""
MAX_NAMED = 4  # settings in the name of an experiment


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
    if any(transfer.get(name) for name in ("text", "language_model", "select_for")):
        content["transfer"] = (origin.get("transfer") or {}).get("fingerprint")
    if _is_int8(origin):
        content["precision"] = "int8"
    if start := origin.get("start_fingerprint"):
        content["start"] = start
    text = json.dumps([origin.get("command"), settings, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_int8(origin: Mapping[str, Any]) -> bool:
    """Return whether frozen weights were quantised; the other precisions depend on the machine."""
    return (origin.get("settings") or {}).get("precision") == "int8"


def _experiment_settings(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    return {
        name: _experiment_settings(value, f"{section}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None and section + name not in NOT_IN_EXPERIMENT
    }


def named_settings(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that name an experiment, by dotted key, with base and number of teachers."""
    settings = _experiment_settings(origin.get("settings") or {})
    sections = SECTIONS.get(str(origin.get("command")), tuple(settings))
    named = {
        f"{section}.{key}": value
        for section in sections
        if isinstance(values := settings.get(section), dict)
        for key, value in values.items()
        if f"{section}.{key}" not in ("distill.teacher", "finetune.leave_out")
    }
    own = (origin.get("settings") or {}).get("student") or {}
    for key in ("base", "init_from"):  # paths: by name
        if "student" in sections and own.get(key) is not None:
            named[f"student.{key}"] = Path(str(own[key])).name
    if _is_int8(origin):
        named["precision"] = "int8"
    if (base := origin.get("base") or settings.get("base")) is not None:
        named["base"] = Path(str(base)).name
    if teachers := teachers_of(origin):
        named["num_teachers"] = len(teachers)
    return named


@dataclass(frozen=True)
class ModelInfo:
    """A model with its experiment.

    Attributes:
        name: unique among the compared models.
        kind: such as `distill (lstm)`.
        experiment: `experiment_key` of its origin.
        fold: of train that it left out, if any.
        teachers: fingerprints of the models it was distilled from.
        num_parameters: all, frozen ones included.
        threshold: on uncalibrated probabilities.
        settings: `named_settings` of its origin.
        facts: about its training, see `evaluation.budget`.
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """Command that trained it."""
        return self.kind.partition(" (")[0]


def group_names(models: Sequence[ModelInfo]) -> list[str]:
    """Return the name of each model's experiment: its kind, or `finetune rank=8` if a command has several.

    A model that repeats the experiment, seed and fold of an earlier one is an experiment of its own.
    Experiments that no setting tells apart have the name of their first model added.
    """
    seen: set[tuple[str, int | None, str | None]] = set()
    keys: list[str] = []
    first: dict[str, ModelInfo] = {}  # experiment -> its first model
    for model in models:
        run = (model.experiment, model.seed, model.fold)
        repeated = model.seed is None or run in seen
        seen.add(run)
        keys.append(f"{model.experiment} {model.name}" if repeated else model.experiment)
        first.setdefault(keys[-1], model)
    names = {}
    for key, model in first.items():
        rivals = [other.settings for other in first.values() if other.command == model.command]
        named = f"{model.command} {_differing(model, rivals)}".strip()
        names[key] = model.kind if len(rivals) == 1 else named
    shared = [name for name in names.values() if [*names.values()].count(name) > 1]
    names |= {key: f"{name} [{first[key].name}]" for key, name in names.items() if name in shared}
    return [names[key] for key in keys]


def _differing(model: ModelInfo, rivals: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings of a model that are not equal in all of `rivals`, such as `dora rank=8`."""
    known = [settings for settings in rivals if settings]
    differing = [
        key for key in model.settings if any(settings.get(key) != model.settings[key] for settings in known)
    ]
    leaves = [key.rpartition(".")[2] for key in differing]
    texts = []
    for key, leaf in zip(differing, leaves, strict=True):
        name, value = leaf if leaves.count(leaf) == 1 else key, model.settings[key]
        if isinstance(value, dict):
            value = [
                f"{part}:{share:g}" if isinstance(share, float) else f"{part}:{share}"
                for part, share in value.items()
            ]
        if value is True:
            texts.append(name)
        elif value is not False:
            texts.append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(texts[:MAX_NAMED])
