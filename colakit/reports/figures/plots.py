"""Figures of training runs, drawn without a display.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers; lines also differ in dash and marker,
so that they survive a grey print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS = (("loss", "loss (nats)"), ("accuracy", "accuracy (%)"), ("mcc", "MCC"))
FONT_SIZE = 9


@dataclass(frozen=True)
class RunData:
    """What is drawn of one run.

    Attributes:
        name: the run folder's.
        group: the experiment's; runs that share it are its seeds.
        evaluations: the evaluation records of metrics.jsonl.
        summary: of the finished run.
    """

    name: str
    group: str
    evaluations: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """A figure of one experiment on one split: mean over seeds, its 95 % interval, and the seeds' values."""

    mean: float
    low: float
    high: float
    seeds: Sequence[float]


@dataclass(frozen=True)
class GroupData:
    """What is drawn of one experiment: split -> `accuracy` or `mcc` -> bar."""

    label: str
    bars: Mapping[str, Mapping[str, Bar]]


def draw_curves(run: RunData) -> Figure:
    """Draw loss, accuracy and MCC over the epochs of one run: train, held-out, and dev where it was tracked.

    The chosen epoch is a vertical line; at it stand the dev figures that are reported.
    """
    figure, axes = _panels(f"{run.name} ({run.group}, seed {run.summary['seed']})")
    epochs = [record["epoch"] for record in run.evaluations]
    tracked = list(run.evaluations[0].get("dev", {}))
    chosen = run.summary["best"]["epoch"]
    reported = [name for name in run.summary["splits"] if name != "val"]
    for axis, (key, _) in zip(axes, PANELS, strict=True):
        scale = 100 if key == "accuracy" else 1
        for position, part in enumerate(("train", "val")):
            label = {"train": "train (dropout on)", "val": "held out of train"}[part]
            # training on sentences without labels alone has a loss, and nothing else that could be drawn
            values = [scale * record[part].get(key, math.nan) for record in run.evaluations]
            _line(axis, epochs, values, position, label)
        for position, split in enumerate(reported, start=2):
            if split in tracked:
                values = [scale * record["dev"][split][key] for record in run.evaluations]
                _line(axis, epochs, values, position, split)
            final = scale * run.summary["splits"][split][key]
            axis.plot(
                [chosen],
                [final],
                MARKERS[position],
                color=PALETTE[position],
                markersize=9,
                markeredgecolor="white",
                label=f"{split}, as reported" + (" (tuned threshold)" if run.summary["threshold"] else ""),
                zorder=5,
            )
        axis.axvline(chosen, color="0.6", linewidth=1, zorder=0, label="chosen epoch")
        if key == "accuracy":
            _majority_line(axis, run)
    _legend_below(figure, axes[0])
    return figure


def draw_overlay(runs: Sequence[RunData]) -> Figure:
    """Draw the held-out loss, accuracy and MCC of several runs over each other; seeds share a colour."""
    figure, axes = _panels("held-out slice of train")
    groups = list(dict.fromkeys(run.group for run in runs))
    for axis, (key, _) in zip(axes, PANELS, strict=True):
        scale = 100 if key == "accuracy" else 1
        named: set[str] = set()
        for run in runs:
            position = groups.index(run.group)
            epochs = [record["epoch"] for record in run.evaluations]
            values = [scale * record["val"][key] for record in run.evaluations]
            _line(axis, epochs, values, position, run.group if run.group not in named else None)
            named.add(run.group)
        if key == "accuracy":
            _majority_line(axis, runs[0], "val")
    _legend_below(figure, axes[0])
    return figure


def draw_comparison(groups: Sequence[GroupData], majority_rates: Mapping[str, float]) -> Figure:
    """Draw bars of accuracy and MCC on every dev split, one colour an experiment.

    A bar is the mean over seeds, its whisker the 95 % bootstrap interval of that mean over sentences; where
    there are several seeds each is a dot.
    """
    splits = list(groups[0].bars)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    width = 0.8 / len(groups)
    for axis, (key, title) in zip(axes, PANELS[1:], strict=True):
        scale = 100 if key == "accuracy" else 1
        for position, group in enumerate(groups):
            places = [i - 0.4 + width * (position + 0.5) for i in range(len(splits))]
            _bars(
                axis,
                places,
                width,
                position,
                group.label,
                [group.bars[split][key] for split in splits],
                scale,
            )
        if key == "accuracy":
            for i, split in enumerate(splits):
                rate = 100 * majority_rates[split]
                label = "majority rate" if i == 0 else None
                axis.plot([i - 0.45, i + 0.45], [rate, rate], ":", color="black", linewidth=1.5, label=label)
            lowest = min(group.bars[split][key].low for group in groups for split in splits)
            axis.set_ylim(bottom=max(0.0, 100 * lowest - 5))  # all lie far from 0; the axis shows it
        else:
            axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(splits)), [_split_title(split) for split in splits])
        _dress(axis, title)
    figure.suptitle(
        "mean over seeds with its 95 % bootstrap interval over sentences; dots: seeds", fontsize=FONT_SIZE
    )
    _legend_below(figure, axes[0])
    return figure


def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure in the format of the path's ending; the bytes depend on nothing but the data."""
    FigureCanvasAgg(figure)
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=dpi, metadata=metadata.get(path.suffix[1:]))


def _panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = list(figure.subplots(1, 3))
    for axis, (_, label) in zip(axes, PANELS, strict=True):
        _dress(axis, label)
        axis.set_xlabel("epoch", fontsize=FONT_SIZE)
    figure.suptitle(title, fontsize=FONT_SIZE + 1)
    return figure, axes


def _dress(axis: Axes, label: str) -> None:
    axis.set_ylabel(label, fontsize=FONT_SIZE)
    axis.tick_params(labelsize=FONT_SIZE)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Axes, x: Sequence[float], y: Sequence[float], position: int, label: str | None) -> None:
    axis.plot(
        x,
        y,
        DASHES[position % len(DASHES)],
        color=PALETTE[position % len(PALETTE)],
        marker=MARKERS[position % len(MARKERS)],
        markersize=4,
        linewidth=1.5,
        label=label,
    )


def _majority_line(axis: Axes, run: RunData, split: str | None = None) -> None:
    names = [split] if split else [name for name in run.summary["splits"] if name != "val"]
    if names:
        rate = 100 * run.summary["splits"][names[0]]["majority_rate"]
        axis.axhline(
            rate,
            color="black",
            linestyle=":",
            linewidth=1.2,
            label=f"majority rate ({_split_title(names[0])})",
        )


def _bars(
    axis: Axes,
    places: Sequence[float],
    width: float,
    position: int,
    label: str,
    bars: Sequence[Bar],
    scale: float,
) -> None:
    below = [max(0.0, scale * (bar.mean - bar.low)) for bar in bars]
    above = [max(0.0, scale * (bar.high - bar.mean)) for bar in bars]
    axis.bar(
        places,
        [scale * bar.mean for bar in bars],
        width * 0.92,
        yerr=[below, above],
        capsize=3,
        color=PALETTE[position % len(PALETTE)],
        hatch=("", "//", "..", "xx")[position % 4],
        edgecolor="white",
        ecolor="0.2",
        label=label,
    )
    for place, bar in zip(places, bars, strict=True):
        if len(bar.seeds) > 1:
            dots = [scale * value for value in bar.seeds]
            axis.plot([place] * len(dots), dots, "o", color="white", markeredgecolor="0.2", markersize=4)


def _split_title(split: str) -> str:
    return {"val": "held out", "id_dev": "in-domain dev", "ood_dev": "out-of-domain dev"}.get(split, split)


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    for other in figure.axes:
        for handle, label in zip(*other.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=FONT_SIZE, frameon=False)
