"""Curves of training runs. Each panel has one quantity, measured in the same way on all splits.

Metrics of train are those of the training batches since the last evaluation: with dropout, at argmax. The
validation split is drawn beside them at argmax, and with the dev splits at the tuned threshold.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from colakit.reports.figures.style import (
    WIDTH,
    colour,
    legend_below,
    legend_rows,
    marker,
    pale_grid,
    shown,
    shown_names,
    split_title,
    styled,
)
from colakit.training.objectives import CROSS_ENTROPY

METRICS = {"accuracy": ("accuracy (%)", 100), "mcc": ("MCC", 1)}  # title, factor
PANEL_HEIGHT = 2.5  # inches
TITLE_CHARACTERS = 42  # per line
SMOOTHING = 15  # the window of the moving average is this part of the steps, and at least MIN_WINDOW
MIN_WINDOW = 5
MAX_MARKERS = 12  # per line
TRAIN_LABEL = "train (dropout on)"
TRAIN: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1, "marker": "."}
HELD_OUT: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 4}
ONE_RUN: dict[str, Any] = {"linestyle": "-", "linewidth": 1, "marker": ".", "markersize": 5, "alpha": 0.35}
REPORTED: dict[str, Any] = {"linestyle": "", "markersize": 8, "markeredgecolor": "white", "zorder": 5}
MAJORITY: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2}


@dataclass(frozen=True)
class RunData:
    """Data of one run."""

    name: str
    group: str  # name of the experiment, shared by its seeds
    steps: Sequence[Mapping[str, Any]]  # records of metrics.jsonl of single steps
    evaluations: Sequence[Mapping[str, Any]]  # and of evaluations
    summary: Mapping[str, Any]  # content of summary.json

    @property
    def is_tuned(self) -> bool:
        """Whether a threshold was tuned on the validation split."""
        return self.summary["threshold"] is not None

    @property
    def loss_panels(self) -> list[str]:
        """Names of the panels of losses: that of the training loss, unless it is the cross-entropy."""
        return list(dict.fromkeys([CROSS_ENTROPY, self.summary["train_loss"]]))


@dataclass(frozen=True)
class Panel:
    """A panel of one quantity.

    Attributes:
        name: `accuracy`, `mcc` or the name of a loss.
        argmax: predictions are argmax although a threshold was tuned.
    """

    axis: Axes
    name: str
    argmax: bool = False

    @property
    def has_held_out(self) -> bool:
        """Whether the quantity is measured on held-out splits: all but training losses of other kinds."""
        return self.name in METRICS or self.name == CROSS_ENTROPY

    def train(self, run: RunData) -> dict[int, float]:
        """Return step -> value on train; empty if the run has none of this quantity."""
        records = {each["step"]: each["train"] for each in run.evaluations}
        if self.name not in METRICS:
            is_loss = self.name == run.summary["train_loss"]
            return {step: train["loss"] for step, train in records.items()} if is_loss else {}
        if run.is_tuned and not self.argmax:
            return {}
        factor = METRICS[self.name][1]
        return {step: factor * train[self.name] for step, train in records.items() if self.name in train}

    def held_out(self, record: Mapping[str, Any]) -> float:
        """Return the value in the metrics of a split."""
        if self.name not in METRICS:
            return record["loss"]
        return METRICS[self.name][1] * (record["argmax"] if self.argmax else record)[self.name]


@styled
def draw_curves(run: RunData) -> Figure:
    """Draw losses, accuracy and MCC of one run over the epochs.

    The loss of single steps is drawn pale, with its moving average. A vertical line is the selected epoch,
    and markers on it the reported metrics of the dev splits.
    """
    figure, panels = _panels([run], "epoch")
    seed, steps = run.summary["seed"], run.summary["steps"]
    figure.suptitle(f"{shown(run.name)}: {shown(run.group)}, seed {seed}, {steps:,} steps")
    entries: dict[str, Artist] = {}
    for panel in panels:
        if panel.name == run.summary["train_loss"] and len(run.steps) > 1:
            entries.update(_draw_step_losses(panel.axis, run))
        elif train := panel.train(run):
            (entries[TRAIN_LABEL],) = panel.axis.plot(
                _epochs(run, train), [*train.values()], color=colour(0), **TRAIN
            )
        if panel.has_held_out:
            for index, split in enumerate(_splits(panel, run), start=1):
                entries.update(_draw_split(panel, run, split, index))
        selected = panel.axis.axvline(run.summary["best"]["epoch"], color="0.6", linewidth=1, zorder=0)
        entries["selected epoch"] = selected
    _finish(figure, entries)
    return figure


@styled
def draw_overlay(runs: Sequence[RunData]) -> Figure:
    """Draw losses, accuracy and MCC of several runs over the optimizer steps; seeds share a colour.

    Lines are means over the runs of an experiment; the validation of each run is drawn pale.
    """
    figure, panels = _panels(runs, "optimizer step")
    names = shown_names([run.group for run in runs])
    entries: dict[str, Artist] = {}
    for panel in panels:
        for index, (group, name) in enumerate(names.items()):
            members = [run for run in runs if run.group == group]
            if line := _draw_group(panel, members, index):
                entries.setdefault(name, line)
        if panel.name == "accuracy":
            for rate in sorted({run.summary["splits"]["val"]["majority_rate"] for run in runs}):
                line = panel.axis.axhline(100 * rate, color="black", **MAJORITY)
                entries["majority rate (validation)"] = line
    axis = panels[0].axis
    (entries["validation"],) = axis.plot([], [], color="0.3", **HELD_OUT)
    (entries[TRAIN_LABEL],) = axis.plot([], [], color="0.3", **TRAIN)
    if len(runs) > len(names):
        (entries["validation, one run"],) = axis.plot([], [], color="0.3", **ONE_RUN)
    _finish(figure, entries)
    return figure


def _panels(runs: Sequence[RunData], x_label: str) -> tuple[Figure, list[Panel]]:
    """Return a figure with three columns of panels: losses, accuracy, MCC."""
    losses = list(dict.fromkeys(name for run in runs for name in run.loss_panels))
    decisions = [True, False] if any(run.is_tuned for run in runs) else [False]
    columns = [
        [(name, False) for name in losses],
        *([(name, each) for each in decisions] for name in METRICS),
    ]
    num_rows = math.lcm(len(losses), len(decisions))
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * max(map(len, columns))), layout="constrained")
    grid = figure.add_gridspec(num_rows, len(columns))
    panels: list[Panel] = []
    for x, column in enumerate(columns):
        height = num_rows // len(column)
        for y, (name, argmax) in enumerate(column):
            above = panels[-1].axis if y and name in METRICS else None  # panels of a metric share its range
            first = panels[0].axis if panels else None
            axis = figure.add_subplot(grid[y * height : (y + 1) * height, x], sharex=first, sharey=above)
            panels.append(Panel(axis, name, argmax))
            decision = "argmax" if argmax or len(decisions) == 1 else "tuned threshold"
            title = f"{METRICS[name][0]}, {decision}" if name in METRICS else f"{name} (nats)"
            if name not in METRICS and name != CROSS_ENTROPY:
                title = textwrap.fill(f"train: {shown(name, 3 * TITLE_CHARACTERS)}", TITLE_CHARACTERS)
            axis.set_title(title)
            if name == "mcc":
                axis.axhline(0, color="0.6", linewidth=1, zorder=0)  # chance
            pale_grid(axis)
        axis.set_xlabel(x_label)
    return figure, panels


def _splits(panel: Panel, run: RunData) -> list[str]:
    """Return the splits of a panel; at argmax, only the validation split was measured."""
    return ["val", *(name for name in run.summary["splits"] if name != "val" and not panel.argmax)]


def _epochs(run: RunData, steps: Iterable[int]) -> list[float]:
    """Return the epochs after which the steps end."""
    last = run.evaluations[-1]
    return [step * last["epoch"] / last["step"] for step in steps]


def _draw_step_losses(axis: Axes, run: RunData) -> dict[str, Artist]:
    """Draw the loss of single steps, pale, and its centred moving average."""
    epochs = _epochs(run, [each["step"] for each in run.steps])
    losses = np.array([each["loss"] for each in run.steps])
    window = np.ones(min(len(losses), max(MIN_WINDOW, len(losses) // SMOOTHING)))
    mean = np.convolve(losses, window, "same") / np.convolve(np.ones_like(losses), window, "same")
    (raw,) = axis.plot(epochs, losses, color=colour(0), alpha=0.3, linewidth=0.8)
    (smooth,) = axis.plot(epochs, mean, color=colour(0), **{**TRAIN, "marker": ""})
    return {"train loss of a step": raw, "its moving average": smooth}


def _draw_split(panel: Panel, run: RunData, split: str, index: int) -> dict[str, Artist]:
    """Draw the curve of a split, if it was tracked, its reported metric and its majority rate."""
    entries: dict[str, Artist] = {}
    axis, title = panel.axis, split_title(split)
    style: dict[str, Any] = {"color": colour(index), "marker": marker(index)}
    records = {
        each["step"]: each["val"] if split == "val" else each["dev"][split]
        for each in run.evaluations
        if split == "val" or split in each.get("dev", {})
    }
    if records:
        values = [panel.held_out(record) for record in records.values()]
        every = _marker_every(values)
        (entries[title],) = axis.plot(_epochs(run, records), values, markevery=every, **style, **HELD_OUT)
    if split != "val":
        reported = panel.held_out(run.summary["splits"][split])
        label, epoch = f"{title}, reported", run.summary["best"]["epoch"]
        (entries[label],) = axis.plot([epoch], [reported], **style, **REPORTED)
    if panel.name == "accuracy":
        rate = 100 * run.summary["splits"][split]["majority_rate"]
        axis.axhline(rate, color=colour(index), **MAJORITY)
        (entries["majority rate of the split"],) = axis.plot([], [], color="0.3", **MAJORITY)
    return entries


def _draw_group(panel: Panel, members: Sequence[RunData], index: int) -> Artist | None:
    """Draw the means over the seeds of an experiment; return the line of the validation split, if any."""
    axis, style = panel.axis, dict[str, Any](color=colour(index))
    steps, means = _mean_curve([panel.train(run) for run in members])
    if steps:
        axis.plot(steps, means, **style, **TRAIN)
    if not panel.has_held_out:
        return None
    curves = [{each["step"]: panel.held_out(each["val"]) for each in run.evaluations} for run in members]
    if len(members) > 1:
        for curve in curves:
            axis.plot([*curve], [*curve.values()], **style, **ONE_RUN)
    steps, means = _mean_curve(curves)
    every = _marker_every(means)
    return axis.plot(steps, means, marker=marker(index), markevery=every, **style, **HELD_OUT)[0]


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float]]:
    """Return the steps that all curves (step -> value) have, and the mean of their values."""
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, [fmean(curve[step] for curve in curves) for step in steps]


def _marker_every(values: Sequence[float]) -> int:
    return max(1, len(values) // MAX_MARKERS)


def _finish(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """Add the legend, and its height to the figure."""
    for axis in figure.axes:
        axis.set_xlim(left=0)
        if axis.get_xlim()[1] >= 2:
            axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    rows, _ = legend_rows([*entries])
    figure.set_figheight(figure.get_figheight() + 0.5 + 0.2 * rows)
    legend_below(figure, entries)
