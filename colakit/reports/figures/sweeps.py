"""Figures of a sweep: MCC by each setting, parallel coordinates, importance of settings.

The winner is marked by its shape as well as its colour; the colour scale of the other trials is also one of
brightness, so that the figures can be printed in grey.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from colakit.reports.figures.style import FONT_SIZE, WIDTH, colour, legend_below, pale_grid, shown, styled
from colakit.sweeps.results import TrialResult, winner_of
from colakit.sweeps.space import Choice, as_text

COLUMNS = 3  # panels in a row
PANEL_HEIGHT = 2.4  # inches
ROW_HEIGHT = 0.32  # inches per bar
TICKS = 4  # labels of a scale
MAX_SPACED = 6  # distinct numbers that are equally spaced
COLOURS = colormaps["cividis"]
WINNER = {"marker": "*", "color": colour(1), "markersize": 13, "markeredgecolor": "black", "linestyle": ""}
COMPLETE = {"marker": "o", "color": colour(0), "markersize": 5, "linestyle": ""}
PRUNED = {"marker": "x", "color": "0.55", "markersize": 5, "linestyle": ""}


class Axis:
    """The values of one setting as positions from 0 to 1: many numbers by size, others equally spaced."""

    def __init__(self, values: Sequence[Choice], *, log: bool) -> None:
        self.log = log
        distinct = set(values)
        numbers = sorted(
            value for value in distinct if isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        is_numeric = len(numbers) == len(distinct)
        is_scale = is_numeric and len(numbers) > MAX_SPACED
        self.ends = (self._scaled(numbers[0]), self._scaled(numbers[-1])) if is_scale else None
        self.order: list[Choice] = [*numbers] if is_numeric else sorted(distinct, key=repr)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else float(value)

    def position(self, value: Choice) -> float:
        """Return the position of a value."""
        if self.ends is None:
            return self.order.index(value) / max(1, len(self.order) - 1)
        assert isinstance(value, (int, float))
        low, high = self.ends
        return (self._scaled(value) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and texts of labels."""
        if self.ends is None:
            return [(self.position(value), shown(as_text(value), 16)) for value in self.order]
        low, high = self.ends
        steps = [number / (TICKS - 1) for number in range(TICKS)]
        values = [low + step * (high - low) for step in steps]
        return [
            (step, f"{10**value if self.log else value:.3g}")
            for step, value in zip(steps, values, strict=True)
        ]


def _axes_of(trials: Sequence[TrialResult], log_keys: Collection[str]) -> dict[str, Axis]:
    return {
        key: Axis([trial.params[key] for trial in trials], log=key in log_keys) for key in trials[0].params
    }


@styled
def draw_slices(trials: Sequence[TrialResult], log_keys: Collection[str], objective: str) -> Figure:
    """Draw the figure of every trial against each setting.

    Args:
        trials: with a value; that of a pruned trial is its last one.
        log_keys: settings on a logarithmic axis.
    """
    axes_of, winner = _axes_of(trials, log_keys), winner_of(trials)
    columns = 2 if len(axes_of) == 4 else min(COLUMNS, len(axes_of))
    rows = -(-len(axes_of) // columns)
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    kinds = {"complete": COMPLETE, "pruned (last evaluation)": PRUNED, "winner": WINNER}
    groups = {
        "complete": [each for each in trials if each.state == "complete" and each is not winner],
        "pruned (last evaluation)": [each for each in trials if each.state == "pruned"],
        "winner": [winner] if winner else [],
    }
    handles = {}
    for panel, (key, axis) in zip(panels, axes_of.items(), strict=False):
        for name, members in groups.items():
            xs = [axis.position(each.params[key]) for each in members]
            (line,) = panel.plot(xs, [each.value for each in members], **kinds[name], label=name)
            if members:
                handles[name] = line
        panel.set_xticks(*zip(*axis.ticks(), strict=True))
        panel.set_xlim(-0.08, 1.08)
        panel.set_title(shown(key))
        pale_grid(panel)
    for panel in panels[len(axes_of) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(objective)
    legend_below(figure, handles)
    return figure


@styled
def draw_parallel(trials: Sequence[TrialResult], log_keys: Collection[str], objective: str) -> Figure:
    """Draw every trial as a line through its settings to its figure; see `draw_slices`."""
    axes_of, winner = _axes_of(trials, log_keys), winner_of(trials)
    values = [each.value for each in trials if each.value is not None]
    scale, last = Normalize(min(values), max(values)), Axis(values, log=False)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    for trial in sorted(trials, key=lambda each: (each is winner, each.state == "complete", each.value)):
        ys = [each.position(trial.params[key]) for key, each in axes_of.items()]
        ys.append(last.position(trial.value))
        if trial is winner:
            axis.plot(ys, color="black", linewidth=2.6, marker="*", markersize=10, label="winner", zorder=3)
        elif trial.state == "pruned":
            axis.plot(ys, color="0.8", linewidth=0.9, linestyle=":")
        else:
            axis.plot(ys, color=COLOURS(scale(trial.value or 0.0)), linewidth=1.2, alpha=0.9)
    _draw_scales(axis, [*axes_of.values(), last])
    names = [shown(key).replace(".", ".\n", 1) for key in axes_of]
    axis.set_xticks(range(len(names) + 1), [*names, objective.replace(", ", ",\n")])
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=axis, fraction=0.03, pad=0.06)
    bar.set_label(f"{objective} (black: winner; dotted: pruned)", fontsize=FONT_SIZE - 1)
    bar.outline.set_visible(False)
    return figure


def _draw_scales(axis: Axes, scales: Sequence[Axis]) -> None:
    """Draw a vertical axis with its labels at each position."""
    for x, scale in enumerate(scales):
        axis.axvline(x, color="0.4", linewidth=0.8, zorder=0)
        for y, text in scale.ticks():
            axis.annotate(
                text,
                (x, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=FONT_SIZE - 2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.8},
                zorder=4,
            )
    axis.set_xlim(-0.15, len(scales) - 0.7)
    axis.set_ylim(-0.06, 1.06)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params("x", length=0)


@styled
def draw_importance(importance: Mapping[str, float]) -> Figure:
    """Draw the share of the variance that each setting explains (fANOVA), the largest first."""
    figure = Figure(figsize=(WIDTH * 0.7, ROW_HEIGHT * len(importance) + 0.8), layout="constrained")
    axis = figure.subplots()
    keys = sorted(importance, key=lambda key: importance[key])
    bars = axis.barh([shown(key) for key in keys], [100 * importance[key] for key in keys], color=colour(0))
    axis.bar_label(bars, fmt="%.0f", padding=3)
    axis.set_xlim(0, 108)
    axis.set_xlabel("share of the variance between trials (%)")
    axis.tick_params("y", length=0)
    pale_grid(axis, "x")
    return figure
