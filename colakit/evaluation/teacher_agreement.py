"""Agreement of students with their teachers, and the share of the teachers' MCC that students reach.

Shapes: N sentences, C classes, M models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from colakit.evaluation.comparison import ModelPredictions, group_indices
from colakit.evaluation.experiments import ModelInfo
from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Spread
from colakit.inference.decisions import predict_labels


@dataclass(frozen=True)
class StudentRow:
    """One student and its teachers."""

    model: str
    teachers: tuple[str, ...]
    agreement: float  # fraction of the sentences with equal predictions, 0 to 1
    kappa: float | None  # `cohens_kappa`


@dataclass(frozen=True)
class TeachingRow:
    """The students of one experiment and their teachers, for the seeds whose teachers are compared too.

    Attributes:
        teachers: experiments of the teachers.
        agreement, kappa: of the students (`pupils`); kappa is None if any student has none.
        mcc, teacher_mcc: means over seeds.
        mcc_kept: `mcc` / `teacher_mcc`, paired over sentences; None if undefined (`Bootstrap.ratio`).
        num_parameters, teacher_parameters: of one student, and of all its teachers together.
    """

    group: str
    teachers: tuple[str, ...]
    num_seeds: int
    agreement: Spread
    kappa: Spread | None
    mcc: Interval
    teacher_mcc: Interval
    mcc_kept: Interval | None
    num_parameters: int
    teacher_parameters: int
    pupils: tuple[StudentRow, ...]


def cohens_kappa(first: Labels, second: Labels) -> float | None:
    """Return Cohen's (1960) kappa of two (N,) predictions; None if all are one class."""
    from sklearn.metrics import cohen_kappa_score

    if first.min() == first.max() == second.min() == second.max():
        return None
    return float(cohen_kappa_score(first, second))


def ensemble_predictions(
    predictions: Sequence[ModelPredictions], thresholds: Sequence[float | None]
) -> Labels:
    """Return the (N,) predictions of an ensemble, from the mean of its models' logits.

    With two classes, the threshold has the mean log-odds of the models' thresholds. A single model keeps its
    own predictions.
    """
    if len(predictions) == 1:
        return predictions[0].predictions
    logits = np.mean([model.logits for model in predictions], axis=0)
    if logits.shape[1] != 2:
        return predict_labels(logits, None)
    probs = np.clip([0.5 if value is None else value for value in thresholds], 1e-9, 1 - 1e-9)
    log_odds = float(np.mean(np.log(probs) - np.log1p(-probs)))
    return predict_labels(logits, 1 / (1 + np.exp(-log_odds)))


def match_teachers(models: Sequence[ModelInfo]) -> dict[int, list[int]]:
    """Return index of a student -> indices of its teachers, for students with all teachers in `models`."""
    indices = {model.fingerprint: index for index, model in reversed(list(enumerate(models)))}
    return {
        student: [indices[teacher] for teacher in model.teachers]
        for student, model in enumerate(models)
        if model.teachers and all(teacher in indices for teacher in model.teachers)
    }


def compare_with_teachers(
    labels: Labels, predictions: Sequence[ModelPredictions], models: Sequence[ModelInfo]
) -> tuple[TeachingRow, ...]:
    """Return a row for each experiment that has a student with all its teachers in `models`.

    Args:
        predictions, models: of the same M models in the same order.
    """
    matched = match_teachers(models)
    groups = [{i: matched[i] for i in group if i in matched} for group in group_indices(predictions).values()]
    return tuple(_row(labels, predictions, models, group) for group in groups if group)


def _row(
    labels: Labels,
    predictions: Sequence[ModelPredictions],
    models: Sequence[ModelInfo],
    teachers_of_student: Mapping[int, list[int]],
) -> TeachingRow:
    students, rows = list(teachers_of_student), []
    student_predictions = [predictions[student].predictions for student in students]
    teacher_predictions = [
        ensemble_predictions([predictions[t] for t in teachers], [models[t].threshold for t in teachers])
        for teachers in teachers_of_student.values()
    ]
    for student, ours, ensemble in zip(students, student_predictions, teacher_predictions, strict=True):
        names = tuple(predictions[teacher].model for teacher in teachers_of_student[student])
        agreement = float(np.mean(ours == ensemble))
        rows.append(StudentRow(predictions[student].model, names, agreement, cohens_kappa(ours, ensemble)))
    num_labels = predictions[0].logits.shape[1]
    sample = Bootstrap(labels, [*student_predictions, *teacher_predictions], num_labels)
    first, second = range(len(rows)), range(len(rows), 2 * len(rows))
    kappas = [row.kappa for row in rows if row.kappa is not None]
    all_teachers = [predictions[t].group for teachers in teachers_of_student.values() for t in teachers]
    return TeachingRow(
        group=predictions[students[0]].group,
        teachers=tuple(dict.fromkeys(all_teachers)),
        num_seeds=len(rows),
        agreement=Spread.of([row.agreement for row in rows]),
        kappa=Spread.of(kappas) if len(kappas) == len(rows) else None,
        mcc=sample.mean("mcc", first),
        teacher_mcc=sample.mean("mcc", second),
        mcc_kept=sample.ratio("mcc", first, second),
        num_parameters=models[students[0]].num_parameters,
        teacher_parameters=sum(models[t].num_parameters for t in teachers_of_student[students[0]]),
        pupils=tuple(rows),
    )
