"""Heat maps of MCC: experiments by slices of a split.

Blue is better than chance, vermilion worse, white is 0: two of Okabe and Ito's (2008) colours, which
colour-blind readers can tell apart. Every cell shows its value, so that the figure can be printed in grey.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from colakit.evaluation.slices import FEW_NOTE, SliceReport, SliceRow
from colakit.reports.figures.style import FONT_SIZE, PALETTE, shown, split_title, styled

COLOURS = LinearSegmentedColormap.from_list("mcc", ["#7A2A00", PALETTE[1], "#FFFFFF", PALETTE[0], "#003352"])
UNDEFINED_COLOUR = "0.93"  # of a slice without an MCC
ROW_HEIGHT, COLUMN_WIDTH, LABEL_WIDTH = 0.21, 0.95, 2.3  # inches
MARGIN = 1.5  # inches above and below the cells: title, column names, colour bar
NOTE_CHARACTERS_PER_INCH = 9
COLUMN_NAME_CHARACTERS = 16  # per line
ROW_NAME_CHARACTERS = 30
GAP = 0.4  # rows between the whole split, the slices, and the slices with few sentences
MAX_ROWS = 36  # of one panel; more rows are laid out side by side
MIN_LIMIT = 0.3  # of the colour scale, so that noise around 0 stays pale


@styled
def draw_slices(report: SliceReport) -> Figure:
    """Draw all sentences, then the slices by decreasing mean MCC, those with few sentences last.

    Columns are experiments. Slices without sentences are left out.
    """
    columns = report.experiments

    def sort_key(row: SliceRow) -> tuple[bool, bool, float]:
        values = [score.mcc.mean for score in row.scores]
        return row.few, not values, -fmean(values) if values else 0.0

    rows = [report.whole, *sorted((row for row in report.rows if row.num_examples), key=sort_key)]
    per_panel = math.ceil(len(rows) / math.ceil(len(rows) / MAX_ROWS))
    panels = [rows[start : start + per_panel] for start in range(0, len(rows), per_panel)]
    positions = [_positions(panel, report.whole) for panel in panels]
    height = max(ys[-1] for ys in positions) + 1
    width = len(panels) * (LABEL_WIDTH + COLUMN_WIDTH * len(columns)) + 0.3
    figure = Figure(figsize=(width, ROW_HEIGHT * height + MARGIN), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    limit = max([MIN_LIMIT, *(abs(score.mcc.mean) for row in rows for score in row.scores)])
    for axis, panel, ys in zip(axes, panels, positions, strict=True):
        _draw_panel(axis, panel, ys, columns, limit)
        axis.set_ylim(height - 0.5, -0.5)  # equal row heights, also in a shorter last panel
    scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = figure.colorbar(scale, ax=list(axes), location="bottom", shrink=0.6, fraction=0.02, aspect=40)
    note = f"in grey: {FEW_NOTE}; \N{EN DASH}: all labels equal"
    note = textwrap.fill(note, int(width * NOTE_CHARACTERS_PER_INCH))
    bar.set_label(f"MCC, mean over seeds\n{note}", fontsize=FONT_SIZE - 1)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    bar.outline.set_visible(False)
    figure.suptitle(f"{split_title(report.slices.split)}: MCC by {shown(report.slices.field)}")
    return figure


def _positions(rows: Sequence[SliceRow], whole: SliceRow) -> list[float]:
    """Return the vertical position of each row, in rows from the top, with a gap between the three kinds."""
    kinds = [(row is whole, row.few) for row in rows]
    gaps = itertools.accumulate(
        kind != before for kind, before in zip(kinds, [kinds[0], *kinds], strict=False)
    )
    return [index + GAP * num_gaps for index, num_gaps in enumerate(gaps)]


def _draw_panel(
    axis: Axes, rows: Sequence[SliceRow], positions: Sequence[float], columns: Sequence[str], limit: float
) -> None:
    for y, row in zip(positions, rows, strict=True):
        values: list[float | None] = [score.mcc.mean for score in row.scores]
        for x, value in enumerate(values or [None] * len(columns)):
            _draw_cell(axis, x, y, value, limit)
        count = f"{row.num_examples:,}"
        axis.text(-0.56, y, count, ha="right", va="center", fontsize=FONT_SIZE - 2, color="0.4")
    axis.set_xlim(-0.5, len(columns) - 0.5)
    names = [textwrap.fill(shown(name), COLUMN_NAME_CHARACTERS) for name in columns]
    axis.set_xticks(range(len(columns)), names)
    axis.set_yticks(positions, [shown(row.name, ROW_NAME_CHARACTERS) for row in rows])
    axis.tick_params(length=0, labelsize=FONT_SIZE - 1, labeltop=True, labelbottom=False)
    axis.tick_params("y", pad=32)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_color("0.5" if row.few else "black")
    axis.spines[:].set_visible(False)


def _draw_cell(axis: Axes, x: int, y: float, value: float | None, limit: float) -> None:
    if value is None:
        colour, text = to_rgb(UNDEFINED_COLOUR), "\N{EN DASH}"
    else:
        colour = to_rgb(COLOURS((1 + value / limit) / 2))
        text = f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0 turns -0 into 0
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
    red, green, blue = colour
    ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
    axis.text(x, y, text, ha="center", va="center", fontsize=FONT_SIZE - 1.5, color=ink)
