"""Colours, text and files of all figures.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. Lines also differ in
dash and marker, so that figures can be printed in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.style import context

from colakit.utils.text import escape

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FONT = "DejaVu Sans"  # part of matplotlib: equal figures on every machine
FONT_SIZE = 9
WIDTH = 9.0  # inches
LEGEND_CHARACTERS = 110  # of one row of the legend
NAME_CHARACTERS = 40

styled = context(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "figure.constrained_layout.use": True,
        "figure.titlesize": FONT_SIZE + 1,
        "font.family": FONT,
        "font.size": FONT_SIZE,
        "legend.frameon": False,
        "svg.hashsalt": "colakit",  # equal figures have equal ids
        "text.parse_math": False,  # names may contain dollar signs
    },
    after_reset=True,
)
"""Decorator of all functions that draw or save: the user's matplotlibrc has no effect."""


def split_title(split: str) -> str:
    """Return the name of a split in a figure."""
    known = {"val": "validation", "id_dev": "in-domain dev", "ood_dev": "out-of-domain dev"}
    return known.get(split, shown(split))


def shown(name: str, width: int = NAME_CHARACTERS) -> str:
    """Return a name as text of a figure, shortened in the middle to `width` characters.

    Control characters, and characters that the font lacks, are written as Python escapes: names that differ
    stay different.
    """
    glyphs = get_font(findfont(FONT)).get_charmap()
    text = escape(name, lambda character: character.isprintable() and ord(character) in glyphs)
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def shown_names(names: Sequence[str], width: int = NAME_CHARACTERS) -> dict[str, str]:
    """Return name -> its text; texts are numbered if two shortened names are equal."""
    texts = {name: shown(name, width) for name in names}
    if len(set(texts.values())) < len(texts):
        texts = {name: f"{number}: {text}" for number, (name, text) in enumerate(texts.items(), 1)}
    return texts


def marker(index: int) -> str:
    """Return a marker; `index` and `index + 8`, which share a colour, have different ones."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def colour(index: int) -> str:
    """Return a colour of the palette."""
    return PALETTE[index % len(PALETTE)]


def pale_grid(axis: Axes, direction: Literal["x", "y"] = "y") -> None:
    """Draw a grid behind the data."""
    axis.grid(axis=direction, color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)


def legend_rows(labels: Sequence[str]) -> tuple[int, int]:
    """Return rows and columns of a legend with these labels."""
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (8 + max(map(len, labels), default=1))))
    return -(-len(labels) // columns), columns


def legend_below(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """Add a legend (label -> handle) below all axes."""
    _, columns = legend_rows([*entries])
    figure.legend([*entries.values()], [*entries], loc="outside lower center", ncols=columns)


@styled
def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure in the format of the path's suffix; equal figures give equal bytes."""
    FigureCanvasAgg(figure)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    figure.savefig(path, dpi=dpi, metadata=metadata.get(path.suffix[1:]))
