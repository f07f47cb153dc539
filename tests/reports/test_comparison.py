"""Comparison of experiments: values, intervals and majority rates of the splits."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from colakit.evaluation.metrics import Interval
from colakit.reports.figures.comparison import Score, SplitScores, draw_comparison


def draw(seeds: list[float], names: tuple[str, ...] = ("a", "b")) -> Figure:
    scores = {
        name: {
            "accuracy": Score(Interval(0.75, 0.7, 0.8), seeds),
            "mcc": Score(Interval(-0.05, -0.1, 0.02), seeds),
        }
        for name in names
    }
    return draw_comparison({"id_dev": SplitScores(0.6, scores), "ood_dev": SplitScores(0.7, scores)})


def test_a_comparison_writes_every_mean_with_its_interval() -> None:
    axes = draw([0.75]).axes
    assert [axis.get_title(loc="left") for axis in axes] == [
        "in-domain dev: accuracy (%)",
        "in-domain dev: MCC",
        "out-of-domain dev: accuracy (%)",
        "out-of-domain dev: MCC",
    ]
    assert [text.get_text() for text in axes[0].texts] == ["75.0", "75.0"]
    assert [text.get_text() for text in axes[1].texts] == ["−0.050", "−0.050"]  # noqa: RUF001
    ends = [x for segment in axes[0].collections[0].get_segments() for x, _ in segment]
    assert ends == pytest.approx([70, 80])


def test_majority_rates_are_those_of_each_split() -> None:
    axes = draw([0.75]).axes
    for axis, rate in ((axes[0], 60), (axes[2], 70)):
        lines = [line.get_xdata()[0] for line in axis.lines if list(line.get_ydata()) == [0, 1]]
        assert lines[0] == pytest.approx(rate)


@pytest.mark.parametrize(("seeds", "num_circles"), [([0.7], 0), ([0.6, 0.7, 0.8], 3)])
def test_seeds_are_drawn_if_there_are_several(seeds: list[float], num_circles: int) -> None:
    axis = draw(seeds, ("a",)).axes[0]
    circles = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in circles) == num_circles


def test_an_axis_that_does_not_start_at_0_says_so() -> None:
    assert draw([0.7]).axes[2].get_xlabel() == "accuracy (%); the axis does not start at 0"
