"""Heat maps: order of rows, values, colours and panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from colakit.evaluation.metrics import Interval, Spread
from colakit.evaluation.slices import SliceReport, SliceRow, SliceScore, SplitSlices
from colakit.reports.figures.heatmaps import draw_slices
from colakit.reports.figures.style import save_figure


def slice_row(name: str, num_examples: int, values: list[float], few: bool = False) -> SliceRow:
    scores = [
        SliceScore(str(i), Spread(value, None), Interval(value, value, value))
        for i, value in enumerate(values)
    ]
    return SliceRow(name, num_examples, 0.5, few, tuple(scores))


def draw(columns: list[str], whole: SliceRow, rows: list[SliceRow]) -> Figure:
    slices = SplitSlices("dev", "source", {}, np.arange(0))
    return draw_slices(SliceReport(slices, tuple(columns), whole, tuple(rows)))


@pytest.fixture
def rows() -> list[SliceRow]:
    return [
        slice_row("low", 40, [-0.4, 0.0]),
        slice_row("high", 50, [0.5, 0.3]),
        slice_row("one label", 35, []),
        slice_row("small", 3, [1.0, 0.9], few=True),
    ]


def test_a_heat_map_orders_rows_and_writes_every_value(rows: list[SliceRow]) -> None:
    figure = draw(["first model", "second"], slice_row("all", 1234, [0.2, -0.001]), rows)
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["all", "high", "low", "one label", "small"]
    heights = axis.get_yticks().tolist()
    assert heights == sorted(heights)
    texts = [text.get_text() for text in axis.texts]
    assert texts[:3] == ["0.20", "0.00", "1,234"]
    assert texts[3:9] == ["0.50", "0.30", "50", "−0.40", "0.00", "40"]  # noqa: RUF001
    assert texts[9:] == ["–", "–", "35", "1.00", "0.90", "3"]  # noqa: RUF001


def test_colours_are_white_at_zero_and_blue_above_it(rows: list[SliceRow]) -> None:
    figure = draw(["a", "b"], slice_row("all", 9, [0.0, 0.0]), rows)
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(cells) == 10
    colours = [to_rgb(cell.get_facecolor()) for cell in cells]
    assert colours[0] == pytest.approx((1, 1, 1), abs=0.02)
    high, low = colours[2], colours[4]
    assert high[2] > high[0]  # more blue than red
    assert low[0] > low[2]
    assert colours[6] == to_rgb("0.93")


def test_many_rows_are_divided_into_panels_of_equal_height(tmp_path: Path) -> None:
    many = [slice_row(f"part {i}", 30 + i, [i / 100, -i / 100]) for i in range(63)]
    figure = draw(["a", "b"], slice_row("all", 1040, [0.1, 0.1]), many)
    panels = [
        axis for axis in figure.axes if axis.get_yticklabels() and axis.get_xticklabels()[0].get_text() == "a"
    ]
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in panels]
    assert [len(part) for part in names] == [32, 32]
    assert sorted(names[0] + names[1]) == sorted(["all", *(row.name for row in many)])
    assert len({axis.get_ylim() for axis in panels}) == 1
    again = draw(["a", "b"], slice_row("all", 1040, [0.1, 0.1]), many)
    for name, drawn in (("map", figure), ("again", again)):
        save_figure(drawn, tmp_path / f"{name}.png", dpi=50)
    assert (tmp_path / "map.png").read_bytes() == (tmp_path / "again.png").read_bytes()
