"""The plan of a command: its stages with their estimated seconds, printed before the work begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from colakit.utils.console import Reporter


@dataclass
class Stage:
    """A part of a command's work.

    Attributes:
        name: such as `sampling sentences`.
        sentences: sentences (or windows of text) to process; 0 if the stage is counted in steps only.
        steps: optimizer steps.
        estimate: expected seconds; 0 if the result is cached, None if they could not be measured.
        started, ended: monotonic clock.
    """

    name: str
    sentences: int = 0
    steps: int = 0
    estimate: float | None = None
    started: float | None = None
    ended: float | None = None

    @property
    def is_cached(self) -> bool:
        """Whether the result is cached, so that nothing is left to do."""
        return self.estimate == 0

    @property
    def seconds(self) -> float | None:
        """Seconds that it took, or has taken so far; None before it has begun."""
        if self.started is None:
            return None
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    def __str__(self) -> str:
        counts = ((self.sentences, "sentences"), (self.steps, "steps"))
        parts = [self.name, *(f"{count:,} {unit}" for count, unit in counts if count)]
        return ", ".join([*parts, "cached" if self.is_cached else describe_seconds(self.estimate)])


def describe_seconds(seconds: float | None) -> str:
    """Return a duration in words, rounded to the precision of an estimate."""
    if seconds is None:
        return "time unknown"
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


class Plan:
    """The stages of a command, in order."""

    def __init__(self, stages: Sequence[Stage], reporter: Reporter) -> None:
        self.stages, self.reporter = list(stages), reporter

    def show(self, line: Callable[[str], None]) -> None:
        """Print a line for each stage, and one for the total if every stage could be measured."""
        for number, stage in enumerate(self.stages, start=1):
            line(f"stage {number} of {len(self.stages)}: {stage}")
        estimates = [stage.estimate for stage in self.stages if stage.estimate is not None]
        if len(estimates) == len(self.stages) > 1:
            line(f"estimated time: {describe_seconds(sum(estimates))}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the stage `name` while the block runs; progress shows its number."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            yield
            return
        number, before = names.index(name), self.reporter.stage
        stage = self.stages[number]
        stage.started, self.reporter.stage = time.monotonic(), f"{number + 1} of {len(names)}: "
        try:
            yield
        finally:
            stage.ended, self.reporter.stage = time.monotonic(), before

    def as_dict(self) -> dict[str, Any]:
        """Return each stage's counts, estimate and seconds so far, as plain data."""
        return {
            stage.name: {
                "sentences": stage.sentences,
                "steps": stage.steps,
                "estimated_seconds": None if stage.estimate is None else round(stage.estimate, 2),
                "seconds": None if stage.seconds is None else round(stage.seconds, 2),
            }
            for stage in self.stages
        }
