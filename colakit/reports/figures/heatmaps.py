"""MCC of several experiments on the parts of a split, as a map of coloured cells.

Blue is better than chance, vermilion worse, white is 0: two of Okabe and Ito's (2008) colours, told apart by
colour-blind readers. Every cell holds its value, so that the colours survive a grey print too.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from colakit.reports.figures.plots import FONT_SIZE, PALETTE

COLOURS = LinearSegmentedColormap.from_list("mcc", ["#7A2A00", PALETTE[1], "#FFFFFF", PALETTE[0], "#003352"])
UNDEFINED = "0.93"  # grey of a part where all labels are one
ROW, COLUMN, LABELS = 0.21, 0.95, 2.3  # inches
LETTERS_AN_INCH = 9  # of a note
MARGIN = 1.5  # inches above and below the cells: title, column names, colour bar
GAP = 0.4  # rows between the whole, the parts, and the parts of few sentences
MAX_ROWS = 36  # of one panel; more rows are laid out side by side
LEAST_LIMIT = 0.3  # of the colour scale, so that noise around 0 stays pale
NAME_WIDTH = 16  # characters of a line of a column's name


@dataclass(frozen=True)
class HeatRow:
    """One part of a split: its name, its number of sentences, and an MCC for each experiment.

    Attributes:
        values: one an experiment; None where it is not defined.
        few: whether there are so few sentences that the row is set apart.
    """

    name: str
    num_examples: int
    values: Sequence[float | None]
    few: bool = False


def draw_heat_map(
    title: str, columns: Sequence[str], whole: HeatRow, rows: Sequence[HeatRow], note: str = ""
) -> Figure:
    """Draw rows by falling mean MCC, those of few sentences after the others, under the row of `whole`.

    Args:
        columns: names of the experiments, in the order of every row's values.
        note: what stands below the colour bar.
    """
    ordered = [whole, *sorted(rows, key=_rank)]
    panels = [(part, _places(part, whole)) for part in _panels(ordered)]
    height = max(places[-1] for _, places in panels) + 1
    width = len(panels) * (LABELS + COLUMN * len(columns)) + 0.3
    figure = Figure(figsize=(width, ROW * height + MARGIN), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    limit = max([LEAST_LIMIT, *(abs(value) for row in ordered for value in row.values if value is not None)])
    for axis, (part, places) in zip(axes, panels, strict=True):
        _draw_panel(axis, part, places, columns, limit)
        axis.set_ylim(height - 0.5, -0.5)  # a shorter last panel has rows of the same height
    scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = figure.colorbar(scale, ax=list(axes), location="bottom", shrink=0.6, fraction=0.02, aspect=40)
    below = textwrap.fill(note, int(width * LETTERS_AN_INCH))
    bar.set_label(f"MCC, mean over seeds\n{below}".strip(), fontsize=FONT_SIZE - 1)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=FONT_SIZE + 1)
    return figure


def _rank(row: HeatRow) -> tuple[bool, bool, float]:
    known = [value for value in row.values if value is not None]
    return row.few, not known, -fmean(known) if known else 0.0


def _panels(rows: Sequence[HeatRow]) -> Iterator[Sequence[HeatRow]]:
    """Yield the rows of each panel: as few panels as will do, of like heights."""
    height = math.ceil(len(rows) / math.ceil(len(rows) / MAX_ROWS))
    for start in range(0, len(rows), height):
        yield rows[start : start + height]


def _places(rows: Sequence[HeatRow], whole: HeatRow) -> list[float]:
    """Return how far down each row stands, in rows: a gap parts the three kinds."""
    kinds = [(row is whole, row.few) for row in rows]
    changes = itertools.accumulate(
        kind != before for kind, before in zip(kinds, [kinds[0], *kinds], strict=False)
    )
    return [place + GAP * changed for place, changed in enumerate(changes)]


def _draw_panel(
    axis: Axes,
    rows: Sequence[HeatRow],
    places: Sequence[float],
    columns: Sequence[str],
    limit: float,
) -> None:
    for y, row in zip(places, rows, strict=True):
        for x, value in enumerate(row.values):
            _draw_cell(axis, x, y, value, limit)
        count = f"{row.num_examples:,}"
        axis.text(-0.56, y, count, ha="right", va="center", fontsize=FONT_SIZE - 2, color="0.4")
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_xticks(range(len(columns)), [textwrap.fill(name, NAME_WIDTH) for name in columns])
    axis.set_yticks(places, [row.name for row in rows])
    axis.tick_params(length=0, labelsize=FONT_SIZE - 1, labeltop=True, labelbottom=False)
    axis.tick_params("y", pad=32)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_color("0.5" if row.few else "black")
    axis.spines[:].set_visible(False)


def _draw_cell(axis: Axes, x: int, y: float, value: float | None, limit: float) -> None:
    if value is None:
        colour, text = to_rgb(UNDEFINED), "\N{EN DASH}"
    else:
        colour = to_rgb(COLOURS((1 + value / limit) / 2))
        text = f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before 0
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
    red, green, blue = colour
    ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
    axis.text(x, y, text, ha="center", va="center", fontsize=FONT_SIZE - 1.5, color=ink)
