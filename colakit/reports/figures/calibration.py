"""Reliability diagrams: accuracy by the probability of the predicted class, before and after calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from colakit.evaluation.calibration import CalibrationRow
from colakit.reports.figures.style import (
    WIDTH,
    colour,
    legend_below,
    pale_grid,
    shown_names,
    split_title,
    styled,
)

COLUMNS = 4  # panels in a row
MIN_AREA, MAX_AREA = 4, 250  # of a marker, in square points


@styled
def draw_calibration(split: str, rows: Sequence[CalibrationRow]) -> Figure:
    """Draw a panel for each model; the area of a marker shows the share of the sentences."""
    columns = min(COLUMNS, max(3, len(rows)))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(WIDTH, 1.2 + lines * (WIDTH / columns + 0.2)))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    names = shown_names([row.model for row in rows], 90 // columns)
    least = min(each.confidence for row in rows for of in (row.raw, row.calibrated) for each in of.bins)
    low = math.floor(10 * least) / 10
    handles: dict[str, Artist] = {}
    for axis, row in zip(axes.flat, rows, strict=False):
        (handles["calibrated exactly"],) = axis.plot(
            [low, 1], [low, 1], color="0.6", linestyle=":", linewidth=1
        )
        for number, (label, of) in enumerate({"before": row.raw, "after": row.calibrated}.items()):
            total = sum(each.num_examples for each in of.bins)
            handles[f"{label} calibration"] = axis.scatter(
                [each.confidence for each in of.bins],
                [each.accuracy for each in of.bins],
                s=[MIN_AREA + MAX_AREA * each.num_examples / total for each in of.bins],
                color=colour(number),
                marker="os"[number],
                alpha=0.75,
                linewidth=0,
            )
        axis.set_title(
            f"{names[row.model]}\nECE {row.raw.ece.value:.3f}, after {row.calibrated.ece.value:.3f}"
        )
        axis.set_xlim(low - 0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("probability of the predicted class")
        pale_grid(axis)
    axes[0, 0].set_ylabel("accuracy")
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    figure.suptitle(f"{split_title(split)}: calibration; the area of a marker is the share of the sentences")
    legend_below(figure, handles)
    return figure
