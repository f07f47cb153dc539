"""Comparison of experiments on labelled splits: dots with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colakit.evaluation.metrics import Interval
from colakit.reports.figures.style import (
    FONT_SIZE,
    WIDTH,
    colour,
    legend_below,
    marker,
    pale_grid,
    shown_names,
    split_title,
    styled,
)

METRICS = {"accuracy": ("accuracy (%)", 100, 1), "mcc": ("MCC", 1, 3)}  # title, factor, digits
ROW_HEIGHT = 0.34  # inches per experiment
MEAN: dict[str, Any] = {"fmt": "o", "markersize": 6, "elinewidth": 1.8, "capsize": 3, "zorder": 3}
ONE_RUN: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markerfacecolor": "none"}
MAJORITY: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.3}
NUMBER: dict[str, Any] = {
    **{"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": FONT_SIZE - 1},
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
}


@dataclass(frozen=True)
class Score:
    """A metric of an experiment on a split: mean over runs with its interval, and each run's value."""

    mean: Interval
    runs: Sequence[float]


@dataclass(frozen=True)
class SplitScores:
    """All experiments on one split; `scores` is experiment -> `accuracy` or `mcc` -> score."""

    majority_rate: float
    scores: Mapping[str, Mapping[str, Score]]


@styled
def draw_comparison(splits: Mapping[str, SplitScores], note: str = "") -> Figure:
    """Draw accuracy and MCC of every experiment, with a row of panels for each split.

    A dot is the mean over the runs of an experiment, its line the 95 % bootstrap interval of the mean over
    sentences. If there are several runs, each is a small circle.
    """
    names = shown_names([*next(iter(splits.values())).scores])
    height = len(splits) * (ROW_HEIGHT * len(names) + 0.5) + 0.9
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(splits), 2, sharex="col", sharey=True, squeeze=False)
    for row, (split, content) in zip(panels, splits.items(), strict=True):
        for axis, (metric, (title, factor, digits)) in zip(row, METRICS.items(), strict=True):
            for index, experiment in enumerate(names):
                _draw_score(axis, index, content.scores[experiment][metric], factor, digits)
            axis.set_title(f"{split_title(split)}: {title}")
            pale_grid(axis, "x")
            axis.margins(x=0.12)
        row[0].axvline(100 * content.majority_rate, **MAJORITY)
        row[1].axvline(0, color="0.6", linewidth=1)
    axis.set_ylim(len(names) - 0.5, -0.5)  # shared by all panels
    axis.set_yticks(range(len(names)), [*names.values()])
    panels[-1][0].set_xlabel("accuracy (%); the axis does not start at 0")
    panels[-1][1].set_xlabel("MCC; 0 is chance")
    entries = {
        "mean over runs, 95 % interval over sentences": axis.errorbar(
            [nan], [nan], 1, 1, color="0.3", **MEAN
        ),
        "majority rate of the split": axis.axvline(nan, **MAJORITY),
    }
    if any(len(score.runs) > 1 for row in content.scores.values() for score in row.values()):
        (entries["one run"],) = axis.plot([], [], color="0.3", **ONE_RUN)
    legend_below(figure, entries)
    figure.suptitle(note)
    return figure


def _draw_score(axis: Axes, index: int, score: Score, factor: float, digits: int) -> None:
    """Draw a score at height `index`."""
    mean, low, high = (factor * x for x in (score.mean.value, score.mean.low, score.mean.high))
    errors = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
    axis.errorbar([mean], [index], xerr=errors, color=colour(index), **{**MEAN, "fmt": marker(index)})
    text = f"{mean:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    axis.annotate(text, (mean, index), **NUMBER)
    if len(score.runs) > 1:
        values = [factor * value for value in score.runs]
        axis.plot(values, [index + 0.3] * len(values), color=colour(index), **ONE_RUN)
