"""The section of a report on a sweep, from the sweep's `summary.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from colakit.reports.document import Block, Heading, Paragraph, Picture, TableBlock
from colakit.reports.figures.sweeps import draw_importance, draw_parallel, draw_slices
from colakit.sweeps.results import TrialResult, trials_table
from colakit.sweeps.space import Choice
from colakit.utils.documents import Document, read_document

MAX_TRIALS = 10_000


class TrialRecord(Document):
    """A trial in `summary.json`."""

    index: Annotated[int, Field(ge=0, lt=2**31)]
    state: str
    value: Annotated[float, Field(ge=-1, le=1)] | None
    params: Annotated[dict[str, Choice], Field(max_length=100)]
    seconds: Annotated[float, Field(ge=0, le=1e9)]


class SweepSummary(Document):
    """summary.json of a sweep."""

    objective: str
    note: str
    space: Annotated[dict[str, str], Field(min_length=1, max_length=100)]
    importance: dict[str, Annotated[float, Field(ge=0, le=1)]]
    trials: Annotated[list[TrialRecord], Field(min_length=1, max_length=MAX_TRIALS)]
    winner: dict[str, Any]

    @model_validator(mode="after")
    def _has_values(self) -> SweepSummary:
        for trial in self.trials:
            if trial.value is not None and trial.params.keys() != self.space.keys():
                raise ValueError(f"trial {trial.index}: params must have the settings of space")
        return self


def describe_sweep(folder: Path) -> Iterator[Block]:
    """Yield the section on the sweep in `folder`.

    Raises:
        ColakitError: if it is not the folder of a finished sweep.
    """
    summary = read_document(
        folder / "summary.json", SweepSummary, hint="Give the folder of a finished sweep."
    )
    results = [
        TrialResult(each.index, each.state, each.value, each.params, {}, each.seconds, "", "")
        for each in summary.trials
    ]
    log_keys = [key for key, values in summary.space.items() if values.endswith(", log")]
    yield Heading("Search for settings")
    note = summary.note[:1].upper() + summary.note[1:]
    yield Paragraph(f"{note}. Trials were compared on held-out sentences of train, never on dev.")
    space = [[key, values] for key, values in summary.space.items()]
    yield TableBlock("sweep-space", ("Search space", ["setting", "values"], space))
    _, columns, rows = trials_table(results, summary.objective)
    yield TableBlock("sweep-trials", ("Trials, the best first", columns, rows))
    scored = [each for each in results if each.value is not None]
    if scored:
        yield Picture(
            "sweep-slices",
            f"{summary.objective} of the trials by each setting",
            draw_slices(scored, log_keys, summary.objective),
        )
        yield Picture(
            "sweep-parallel",
            "Each line is a trial",
            draw_parallel(scored, log_keys, summary.objective),
        )
    if summary.importance:
        yield Picture(
            "sweep-importance",
            "Share of the variance between trials that a setting explains (fANOVA)",
            draw_importance(summary.importance),
        )
