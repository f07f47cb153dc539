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
MAX_AREA = 120  # of a marker, in square points


@styled
def draw_calibration(split: str, rows: Sequence[CalibrationRow]) -> Figure:
    """Draw a panel for each model; the area of a marker shows the share of the sentences."""
    columns = min(COLUMNS, max(2, len(rows)))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(WIDTH, 0.9 + lines * (WIDTH / columns + 0.3)))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    names = shown_names([row.model for row in rows], 90 // columns)
    least = min(each.confidence for row in rows for of in (row.raw, row.calibrated) for each in of.bins)
    low = math.floor(10 * least) / 10
    handles: dict[str, Artist] = {}
    for axis, row in zip(axes.flat, rows, strict=False):
        axis.plot([low, 1], [low, 1], color="0.6", linestyle=":", linewidth=1, label="calibrated exactly")
        for number, (label, of) in enumerate({"before": row.raw, "after": row.calibrated}.items()):
            x, y = [each.confidence for each in of.bins], [each.accuracy for each in of.bins]
            total = sum(each.num_examples for each in of.bins)
            areas = [10 + MAX_AREA * each.num_examples / total for each in of.bins]
            axis.plot(x, y, color=colour(number), linestyle=("--", "-")[number], linewidth=1.2)
            handles[f"{label} calibration"] = axis.scatter(
                x, y, s=areas, color=colour(number), marker="os"[number], alpha=0.8
            )
        ece = f"ECE {row.raw.ece.value:.3f}, after {row.calibrated.ece.value:.3f}"
        axis.set_title(f"{names[row.model]}\n{ece}")
        axis.set_xlim(low - 0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        pale_grid(axis)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    figure.supxlabel("probability of the predicted class")
    figure.supylabel("accuracy")
    figure.suptitle(f"{split_title(split)}: calibration; larger markers are more sentences")
    legend_below(figure, handles)
    return figure
