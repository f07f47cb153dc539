"""Training of the compared models: steps and sentences seen, and whether students and controls match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colakit.evaluation.experiments import ModelInfo
from colakit.evaluation.tables import Table

FACTS = ("steps", "max_steps", "examples", "student_fingerprint", "train_fingerprint")
COMPARED = {
    "planned steps": lambda model: model.facts.get("max_steps"),
    "batch size": lambda model: model.settings.get("student_training.batch_size"),
    "student (shape, tokenizer, initial weights)": lambda model: model.facts.get("student_fingerprint"),
    "training data": lambda model: model.facts.get("train_fingerprint"),
}
"""Facts that must be equal for a student of `distill` and its control: name -> value of a model."""


def training_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts about a training, from a model's origin or a run's summary."""
    return {name: record[name] for name in FACTS if name in record}


def training_table(models: Sequence[ModelInfo], groups: Sequence[str]) -> Table:
    """Return the steps and sentences seen of every model, early stops included."""
    rows = []
    for model, group in zip(models, groups, strict=True):
        counts = [model.facts.get(name) for name in ("steps", "examples")]
        cells = ["-" if count is None else f"{count:,}" for count in counts]
        rows.append([model.name, group, "-" if model.seed is None else str(model.seed), *cells])
    return "training of the models", ["model", "experiment", "seed", "steps", "sentences seen"], rows


def unequal_controls(models: Sequence[ModelInfo], groups: Sequence[str]) -> list[str]:
    """Return a warning for each control that does not match a distilled student, experiment by experiment."""
    commands = {"distill": dict[str, list[ModelInfo]](), "train-scratch": dict[str, list[ModelInfo]]()}
    for model, group in zip(models, groups, strict=True):
        if model.command in commands:
            commands[model.command].setdefault(group, []).append(model)
    warnings = []
    for student, students in commands["distill"].items():
        for control, controls in commands["train-scratch"].items():
            differing = []
            for name, fact in COMPARED.items():
                ours, others = ({fact(model) for model in group} - {None} for group in (students, controls))
                if ours and others and ours != others:
                    is_count = all(isinstance(value, int) for value in ours | others)
                    sides = (", ".join(f"{value:,}" for value in sorted(side)) for side in (ours, others))
                    differing.append(f"{name} ({' against '.join(sides)})" if is_count else name)
            if differing:
                warnings.append(
                    f"{student} and {control} are not trained alike: they differ in {', '.join(differing)}; "
                    "`colakit train-scratch --like RUN` trains a control that matches RUN"
                )
    return warnings
