"""Confusion matrices: a panel for each model, with the share of each label in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from colakit.evaluation.classes import ClassReport
from colakit.reports.figures.style import FONT_SIZE, PALETTE, WIDTH, shown_names, split_title, styled

COLOURS = LinearSegmentedColormap.from_list("share", ["#FFFFFF", PALETTE[0]])
COLUMNS = 4  # panels in a row
MAX_NUMBERS = 12  # classes; cells of more are too small for numbers
MAX_TICKS = 40  # classes; more names would overlap
NAME_CHARACTERS = 14


@styled
def draw_confusion(split: str, reports: Sequence[ClassReport]) -> Figure:
    """Draw the predictions by label; the colour is their share of the label's sentences."""
    columns = min(COLUMNS, max(3, len(reports)))
    lines = math.ceil(len(reports) / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + lines * (WIDTH / columns + 0.5)))
    axes = figure.subplots(lines, columns, squeeze=False)
    labels = [row.label for row in reports[0].classes]
    texts = [*shown_names(labels, NAME_CHARACTERS).values()]
    names = shown_names([report.model for report in reports], 90 // columns)
    for axis, report in zip(axes.flat, reports, strict=False):
        counts = np.array(report.confusion)
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axis.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, aspect="equal")
        axis.set_title(f"{names[report.model]}, macro F1 {report.macro_f1:.3f}")
        ticks = range(len(labels)) if len(labels) <= MAX_TICKS else []
        few, style = len(labels) == 2, {"fontsize": FONT_SIZE - 2}
        axis.set_xticks(ticks, texts[: len(ticks)], rotation=0 if few else 90, **style)
        axis.set_yticks(ticks, texts[: len(ticks)], rotation=90 if few else 0, va="center", **style)
        axis.tick_params(length=0)
        axis.set_xlabel("predicted")
        axis.set_ylabel("label")
        if len(labels) <= MAX_NUMBERS:
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if shares[row, column] > 0.6 else "black"
                axis.text(column, row, f"{count:,}", ha="center", va="center", color=ink)
    for axis in axes.flat[len(reports) :]:
        axis.set_axis_off()
    figure.suptitle(f"{split_title(split)}: predictions by label; the colour is the share of the label")
    return figure
