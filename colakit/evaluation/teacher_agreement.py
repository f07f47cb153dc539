"""Students beside the teachers they were distilled from: how alike they answer, and how much carries over.

Shapes: N sentences, C classes, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colakit.evaluation.comparison import Answers, members
from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Spread
from colakit.inference.decisions import predict_labels


@dataclass(frozen=True)
class Profile:
    """What is known of a model besides its answers.

    Attributes:
        fingerprint: of all that determines its logits.
        teachers: fingerprints of the models it was distilled from; empty for all but students.
        num_parameters: in all, frozen ones included.
        threshold: probability of class 1 from which it is answered; None takes the likeliest class.
    """

    fingerprint: str
    teachers: tuple[str, ...]
    num_parameters: int
    threshold: float | None


@dataclass(frozen=True)
class PupilRow:
    """One student beside its teachers.

    Attributes:
        agreement: share of the sentences that both give the same answer, 0 to 1.
        kappa: Cohen's; None where both give one answer, the same, to everything.
    """

    model: str
    teachers: tuple[str, ...]
    agreement: float
    kappa: float | None


@dataclass(frozen=True)
class TeachingRow:
    """An experiment's students beside their teachers, over those seeds whose teachers are there.

    Attributes:
        teachers: experiments of the teachers.
        agreement: share of the sentences that student and teacher give the same answer, 0 to 1.
        kappa: Cohen's; None where any seed has none.
        mcc, teacher_mcc: means over seeds.
        mcc_kept: `mcc` as a share of `teacher_mcc`, paired over sentences; None where the teacher's MCC is
            too near 0 to divide by (`Bootstrap.ratio`).
        num_parameters, teacher_parameters: of one student, and of all its teachers.
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
    pupils: tuple[PupilRow, ...]


def cohens_kappa(ours: Labels, theirs: Labels, num_labels: int) -> float | None:
    """Return how much more often (N,) answers agree than by chance: κ = (p_o - p_e) / (1 - p_e).

    p_o is the share of equal answers, p_e what two raters with these rates of answers would share by chance
    (Cohen 1960). None where p_e is 1.
    """
    rates = [np.bincount(answers, minlength=num_labels) / len(answers) for answers in (ours, theirs)]
    observed, expected = float(np.mean(ours == theirs)), float(rates[0] @ rates[1])
    return None if expected == 1 else (observed - expected) / (1 - expected)


def ensemble_predictions(answers: Sequence[Answers], thresholds: Sequence[float | None]) -> Labels:
    """Return the (N,) predictions of several models as one, from the mean of their logits.

    Of two classes, class 1 is answered where the mean of the models' log-odds, each less the log-odds of its
    own threshold, is not below 0. One model alone gives its own predictions.
    """
    if len(answers) == 1:
        return answers[0].predictions
    logits = np.mean([answer.logits for answer in answers], axis=0)
    if logits.shape[1] != 2:
        return predict_labels(logits, None)
    halves = np.clip([0.5 if cut is None else cut for cut in thresholds], 1e-9, 1 - 1e-9)
    log_odds = float(np.mean(np.log(halves) - np.log1p(-halves)))
    return predict_labels(logits, 1 / (1 + np.exp(-log_odds)))


def compare_with_teachers(
    labels: Labels, answers: Sequence[Answers], profiles: Sequence[Profile]
) -> tuple[TeachingRow, ...]:
    """Return a row for each experiment with a student all of whose teachers are among the models.

    Args:
        labels: (N,).
        answers, profiles: of M models, in one order.
    """
    taught = match_teachers(profiles)
    groups = {
        group: [place for place in places if place in taught] for group, places in members(answers).items()
    }
    return tuple(
        _row(labels, answers, profiles, {place: taught[place] for place in places})
        for places in groups.values()
        if places
    )


def match_teachers(profiles: Sequence[Profile]) -> dict[int, list[int]]:
    """Return place of a student -> places of its teachers, for students whose teachers are all there."""
    places = {profile.fingerprint: place for place, profile in reversed(list(enumerate(profiles)))}
    return {
        student: [places[teacher] for teacher in profile.teachers]
        for student, profile in enumerate(profiles)
        if profile.teachers and all(teacher in places for teacher in profile.teachers)
    }


def _row(
    labels: Labels, answers: Sequence[Answers], profiles: Sequence[Profile], taught: dict[int, list[int]]
) -> TeachingRow:
    ours = [answers[student].predictions for student in taught]
    theirs = [
        ensemble_predictions([answers[t] for t in teachers], [profiles[t].threshold for t in teachers])
        for teachers in taught.values()
    ]
    first, num_labels = next(iter(taught)), answers[0].logits.shape[1]
    pupils = tuple(
        PupilRow(
            answers[student].model,
            tuple(answers[teacher].model for teacher in teachers),
            float(np.mean(our == their)),
            cohens_kappa(our, their, num_labels),
        )
        for (student, teachers), our, their in zip(taught.items(), ours, theirs, strict=True)
    )
    sample = Bootstrap(labels, [*ours, *theirs], num_labels)
    students, tutors = range(len(ours)), range(len(ours), 2 * len(ours))
    kappas = [pupil.kappa for pupil in pupils if pupil.kappa is not None]
    return TeachingRow(
        group=answers[first].group,
        teachers=tuple(dict.fromkeys(answers[t].group for found in taught.values() for t in found)),
        num_seeds=len(taught),
        agreement=Spread.of([pupil.agreement for pupil in pupils]),
        kappa=Spread.of(kappas) if len(kappas) == len(pupils) else None,
        mcc=sample.mean("mcc", students),
        teacher_mcc=sample.mean("mcc", tutors),
        mcc_kept=sample.ratio("mcc", students, tutors),
        num_parameters=profiles[first].num_parameters,
        teacher_parameters=sum(profiles[t].num_parameters for t in taught[first]),
        pupils=pupils,
    )
