"""All results of an evaluation: comparison of models, students with their teachers, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colakit.evaluation.budget import training_table, unequal_controls
from colakit.evaluation.calibration import CalibrationRow, calibration_rows, calibration_table
from colakit.evaluation.classes import (
    ClassReport,
    LabelledSentences,
    class_tables,
    disagreement_table,
    error_table,
    report_classes,
)
from colakit.evaluation.collect import EvaluationInputs
from colakit.evaluation.comparison import SplitComparison, compare
from colakit.evaluation.metrics import Spread
from colakit.evaluation.slices import SliceReport, SplitSlices, report_slices, slice_table
from colakit.evaluation.tables import Table, format_interval, format_spread, percent
from colakit.evaluation.teacher_agreement import TeachingRow, compare_with_teachers
from colakit.utils.console import Reporter


@dataclass(frozen=True)
class SplitReport:
    """All results on one split."""

    where: str  # name and size of the split, for titles
    comparison: SplitComparison
    teaching: tuple[TeachingRow, ...]
    slices: tuple[SliceReport, ...]
    classes: tuple[ClassReport, ...]
    calibration: tuple[CalibrationRow, ...]
    sentences: tuple[Table, ...]  # errors and disagreements

    def as_dict(self) -> dict[str, Any]:
        """Return the results as plain data."""
        return {
            **asdict(self.comparison),
            "teaching": [asdict(row) for row in self.teaching],
            "classes": [report.as_dict() for report in self.classes],
            "calibration": [row.as_dict() for row in self.calibration],
            "sentences": [
                dict(zip(("title", "columns", "rows"), table, strict=True)) for table in self.sentences
            ],
            "parts": {report.slices.field: report.as_dict() for report in self.slices},
        }

    def tables(self, *, classes: bool = True) -> list[Table]:
        """Return the tables that apply: models, experiments, differences, students, slices, sentences.

        Args:
            classes: add the tables of classes and calibration.
        """
        where, comparison = self.where, self.comparison
        tables = [_model_table(where, comparison)]
        if any(row.num_seeds > 1 for row in comparison.groups):
            tables.append(_group_table(where, comparison))
        tables += self.differences().values()
        if classes:
            tables += [*class_tables(where, self.classes), self.calibration_table()]
        return [*tables, *(slice_table(report) for report in self.slices), *self.sentences]

    def differences(self) -> dict[str, Table]:
        """Return the tables that apply: `differences` of experiments, `teachers` and their students."""
        tables = {}
        if self.comparison.pairs:
            tables["differences"] = _pair_table(self.where, self.comparison)
        if self.teaching:
            tables["teachers"] = _teaching_table(self.where, self.teaching)
        return tables

    def calibration_table(self) -> Table:
        """Return the table of calibration, before and after the temperature."""
        return calibration_table(self.where, self.calibration)

    def print_warnings(self, label_names: Sequence[str], reporter: Reporter) -> None:
        """Name collapsed models, and students whose share of the teacher's MCC is undefined."""
        split = self.comparison.split
        for model in self.comparison.models:
            if model.metrics.collapsed:
                label = label_names[int(np.argmax(model.metrics.predicted_rates))]
                reporter.warn(
                    f"{model.model} predicts {label!r} for all of {split}: MCC 0, "
                    f"majority rate {percent(model.metrics.majority_rate)} %"
                )
        for row in self.teaching:
            if row.mcc_kept is None:
                reporter.say(
                    f"{split}: `MCC kept` of {row.group} is undefined: the teacher's MCC, "
                    f"{format_interval(row.teacher_mcc, 1, 3)}, is too near 0"
                )


@dataclass(frozen=True)
class Evaluation:
    """The results of all models on all splits."""

    inputs: EvaluationInputs
    reports: Mapping[str, SplitReport]  # split name -> results

    @property
    def unequal(self) -> list[str]:
        """A message for each control that was not trained as the distilled student."""
        return unequal_controls(self.inputs.models, self.inputs.groups)

    def tables(self, *, classes: bool = True) -> list[Table]:
        """Return the table of trainings and those of all splits."""
        training = training_table(self.inputs.models, self.inputs.groups)
        return [
            training,
            *(table for report in self.reports.values() for table in report.tables(classes=classes)),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the results as plain data."""
        return {
            "corpus": self.inputs.corpus.name,
            "training": [{"model": model.name, **model.facts} for model in self.inputs.models],
            "unequal": self.unequal,
            "splits": {name: report.as_dict() for name, report in self.reports.items()},
        }


def report_split(
    inputs: EvaluationInputs,
    name: str,
    slices: Sequence[SplitSlices],
    *,
    errors: int = 0,
    disagreements: int = 0,
) -> SplitReport:
    """Compute all results on the split `name`; slices of other splits are ignored.

    Args:
        errors, disagreements: sentences to list for each model, and for each pair of models.
    """
    split, predictions = inputs.corpus.split(name), inputs.predictions[name]
    labels, label_names = split.require_labels(), inputs.corpus.label_names
    data = LabelledSentences(f"{name} ({len(split):,} sentences)", split.sentences, labels, label_names)
    return SplitReport(
        data.where,
        compare(name, labels, predictions),
        compare_with_teachers(labels, predictions, inputs.models),
        tuple(report_slices(each, labels, predictions) for each in slices if each.split == name),
        tuple(
            report_classes(each.model, each.logits, labels, each.predictions, label_names)
            for each in predictions
        ),
        calibration_rows(labels, predictions),
        (
            *([error_table(data, predictions, errors)] if errors else []),
            *(
                [disagreement_table(data, predictions, disagreements)]
                if disagreements and len(predictions) > 1
                else []
            ),
        ),
    )


def _model_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            row.model,
            format_interval(row.accuracy, 100, 1),
            percent(row.metrics.majority_rate),
            format_interval(row.mcc, 1, 3),
            f"{row.metrics.loss:.3f}",
        ]
        for row in comparison.models
    ]
    title = f"{where}: models, with 95 % intervals (accuracy: Wilson, MCC: bootstrap)"
    return title, ["model", "accuracy %", "majority %", "MCC", "loss"], rows


def _group_table(where: str, comparison: SplitComparison) -> Table:
    rows = []
    for row in comparison.groups:
        seeds = str(row.num_seeds)
        if row.num_folds:
            seeds = f"{seeds} runs of " if row.num_seeds != row.num_folds else ""
            seeds += f"{row.num_folds} folds"
        accuracy = format_spread(Spread(row.accuracy_mean, row.accuracy_sd), 100, 2)
        mcc = format_spread(Spread(row.mcc_mean, row.mcc_sd), 1, 3)
        rows.append([row.group, seeds, accuracy, percent(row.majority_rate), mcc])
    over = "seeds and folds" if any(row.num_folds for row in comparison.groups) else "seeds"
    return f"{where}: mean ± sd over {over}", ["experiment", "seeds", "accuracy %", "majority %", "MCC"], rows


def _pair_table(where: str, comparison: SplitComparison) -> Table:
    names = _short_names(comparison)
    rows = [
        [
            f"{names[row.first]} - {names[row.second]}",
            format_interval(row.accuracy, 100, 1, signed=True),
            format_interval(row.mcc, 1, 3, signed=True),
            f"{row.detectable_mcc:.3f}",
            ", ".join(f"{p:.2g}" for p in row.corrected_p) or "-",
        ]
        for row in comparison.pairs
    ]
    columns = ["first minus second", "Δ accuracy, points", "Δ MCC", "detectable Δ MCC", "McNemar p"]
    num_tests = sum(len(row.mcnemar_p) for row in comparison.pairs)
    title = f"{where}: differences, paired over sentences, seeds fixed; detectable with 80 % power"
    return f"{title}; p corrected for {num_tests} tests (Holm)", columns, rows


def _short_names(comparison: SplitComparison) -> dict[str, str]:
    """Return experiment -> the folder of its run if it has a single one, with a name of its own."""
    names = {group.group: group.group for group in comparison.groups}
    folders = [Path(row.model).name for row in comparison.models]
    for group in comparison.groups:
        (name, *others) = [Path(row.model).name for row in comparison.models if row.group == group.group]
        if not others and folders.count(name) == 1:
            names[group.group] = name
    return names


def _teaching_table(where: str, rows: Sequence[TeachingRow]) -> Table:
    cells = [
        [
            row.group,
            " + ".join(row.teachers),
            str(row.num_seeds),
            format_spread(row.agreement, 100, 1),
            "-" if row.kappa is None else format_spread(row.kappa, 1, 2),
            "-" if row.mcc_kept is None else format_interval(row.mcc_kept, 100, 0),
            f"{row.num_parameters:,}",
            f"{row.teacher_parameters:,}",
            f"1/{row.teacher_parameters / row.num_parameters:.1f}",
        ]
        for row in rows
    ]
    columns = ["student", "teacher", "seeds", "agreement %", "kappa", "MCC kept %"]
    return f"{where}: students and their teachers", [*columns, "parameters", "teacher's", "ratio"], cells
