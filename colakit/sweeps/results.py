"""Results of a sweep: its trials as plain data, the winner, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colakit.evaluation.tables import Table
from colakit.sweeps.space import Choice, as_text
from colakit.sweeps.study import ERROR, WORKER, SweepStudy

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended.

    Attributes:
        index: its number, and the name of its folder.
        value: objective; of a pruned trial its last MCC on val, if any.
        evaluations: MCC on val of the first run, by number of the evaluation.
        host: of the machine that ended it.
    """

    index: int
    state: str
    value: float | None
    params: dict[str, Choice]
    evaluations: dict[int, float]
    seconds: float
    host: str
    folder: str
    error: str | None = None


def results_of(study: SweepStudy) -> list[TrialResult]:
    """Return the trials that ended, by index."""
    results = []
    for index, attempt in sorted(study.attempts().items()):
        if not study.is_done(attempt):
            continue
        worker = attempt.user_attrs.get(WORKER, {})
        results.append(
            TrialResult(
                index,
                STATES[attempt.state.name],
                attempt.value,
                dict(attempt.params),
                dict(attempt.intermediate_values),
                round(attempt.duration.total_seconds(), 1),
                worker.get("host", ""),
                worker.get("folder", ""),
                attempt.user_attrs.get(ERROR),
            )
        )
    return results


def winner_of(results: Sequence[TrialResult]) -> TrialResult | None:
    """Return the complete trial with the highest value, the first of equal ones; None if there is none."""
    complete = [each for each in results if each.state == "complete" and each.value is not None]
    return max(complete, key=lambda each: (each.value, -each.index), default=None)


def trials_table(results: Sequence[TrialResult], objective: str) -> Table:
    """Return the table of trials, the best first."""

    def order(each: TrialResult) -> tuple[bool, float, int]:
        return each.state != "complete", -(each.value or 0.0), each.index

    keys = list(results[0].params) if results else []
    rows = [
        [
            str(each.index),
            *(as_text(each.params[key]) if key in each.params else "" for key in keys),
            "" if each.value is None else f"{each.value:.3f}",
            each.state,
            f"{each.seconds:.0f}",
        ]
        for each in sorted(results, key=order)
    ]
    return "trials", ["trial", *keys, objective, "state", "seconds"], rows


def as_dict(result: TrialResult) -> dict[str, Any]:
    """Return a trial as plain data."""
    return {key: value for key, value in vars(result).items() if key != "folder"}
