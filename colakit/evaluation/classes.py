"""Metrics of each class, and the sentences on which models are wrong or differ.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.metrics import Labels
from colakit.evaluation.tables import Table, percent
from colakit.inference.decisions import probabilities


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class, as scikit-learn defines them; 0 where the denominator is 0."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassReport:
    """Metrics of a model by class.

    Attributes:
        confusion: (C, C) counts, labels by rows and predictions by columns.
        macro_f1: mean F1 of the classes that occur as label or prediction.
        roc_auc: area under the ROC curve; of more than two classes the mean of one against the rest. None if
            a class has no sentence.
        average_precision: of class 1; of more than two classes the mean over all classes. None as above.
    """

    model: str
    classes: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, ...], ...]
    macro_f1: float
    roc_auc: float | None
    average_precision: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def report_classes(
    model: str, logits: NDArray[np.float32], labels: Labels, predictions: Labels, label_names: Sequence[str]
) -> ClassReport:
    """Return the metrics by class of (N, C) logits and (N,) predictions against (N,) labels."""
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        f1_score,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    classes = np.arange(len(label_names))
    columns = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    rows = zip(label_names, *(column.tolist() for column in columns), strict=True)
    probs = probabilities(logits)
    truth, scores = labels[:, None] == classes, probs  # (N, C)
    if len(classes) == 2:
        truth, scores = truth[:, 1:], scores[:, 1:]
    occur = len(np.unique(labels)) == len(classes)
    return ClassReport(
        model=model,
        classes=tuple(itertools.starmap(ClassRow, rows)),
        confusion=tuple(map(tuple, confusion_matrix(labels, predictions, labels=classes).tolist())),
        macro_f1=float(f1_score(labels, predictions, average="macro", zero_division=0)),
        roc_auc=float(roc_auc_score(truth, scores)) if occur else None,
        average_precision=float(average_precision_score(truth, scores)) if occur else None,
    )


def class_tables(where: str, reports: Sequence[ClassReport]) -> list[Table]:
    """Return a table of the means over classes, one of each class, and one of the confusion matrices."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    means = [
        [report.model, *map(share, (report.macro_f1, report.roc_auc, report.average_precision))]
        for report in reports
    ]
    single = [
        [report.model, row.label, *map(percent, (row.precision, row.recall, row.f1)), str(row.support)]
        for report in reports
        for row in report.classes
    ]
    names = [row.label for row in reports[0].classes]
    counts = [
        [report.model, name, *map(str, row)]
        for report in reports
        for name, row in zip(names, report.confusion, strict=True)
    ]
    return [
        (f"{where}: means over classes", ["model", "macro F1", "ROC-AUC", "average precision"], means),
        (
            f"{where}: classes",
            ["model", "class", "precision %", "recall %", "F1 %", "sentences"],
            single,
        ),
        (f"{where}: predictions by label", ["model", "label", *(f"as {name}" for name in names)], counts),
    ]


@dataclass(frozen=True)
class LabelledSentences:
    """The N sentences of a split with their (N,) labels, as indices and by name."""

    where: str  # in titles
    sentences: Sequence[str]
    labels: Labels
    label_names: Sequence[str]

    def p_label(self, model: ModelPredictions) -> NDArray[np.float64]:
        """Return the calibrated probability (N,) that a model gives the label of each sentence."""
        return probabilities(model.logits, model.temperature)[np.arange(len(self.labels)), self.labels]


def error_table(data: LabelledSentences, predictions: Sequence[ModelPredictions], limit: int) -> Table:
    """Return the sentences that each model mislabels, those first whose label is least probable."""
    rows = []
    for model in predictions:
        p_label, wrong = data.p_label(model), np.flatnonzero(model.predictions != data.labels)
        for index in wrong[np.argsort(p_label[wrong], kind="stable")][:limit]:
            named = [data.label_names[each[index]] for each in (data.labels, model.predictions)]
            rows.append([model.model, *named, f"{p_label[index]:.3f}", data.sentences[index]])
    return f"{data.where}: largest errors", ["model", "label", "predicted", "p(label)", "sentence"], rows


def disagreement_table(data: LabelledSentences, predictions: Sequence[ModelPredictions], limit: int) -> Table:
    """Return the sentences that two models label differently, the largest distances of p(label) first."""
    rows = []
    for first, second in itertools.combinations(predictions, 2):
        p_first, p_second = data.p_label(first), data.p_label(second)
        distance = np.abs(p_first - p_second)
        differing = np.flatnonzero(first.predictions != second.predictions)
        for index in differing[np.argsort(-distance[differing], kind="stable")][:limit]:
            probs = [f"{p_first[index]:.3f}", f"{p_second[index]:.3f}"]
            label = data.label_names[data.labels[index]]
            rows.append([f"{first.model}, {second.model}", label, *probs, data.sentences[index]])
    columns = ["models", "label", "first p(label)", "second p(label)", "sentence"]
    return f"{data.where}: largest disagreements", columns, rows
