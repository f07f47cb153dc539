"""Figures of training runs, drawn without a display.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. Lines also differ in
dash and marker, so that figures can be printed in grey.
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
    """Data of one run."""

    name: str
    group: str  # name of the experiment, shared by its seeds
    evaluations: Sequence[Mapping[str, Any]]  # evaluation records of metrics.jsonl
    summary: Mapping[str, Any]  # content of summary.json


@dataclass(frozen=True)
class Bar:
    """A metric of an experiment on a split: mean over seeds, its 95 % interval, each seed's value."""

    mean: float
    low: float
    high: float
    seeds: Sequence[float]


Bars = Mapping[str, Mapping[str, Bar]]  # split -> `accuracy` or `mcc` -> bar


def draw_curves(run: RunData) -> Figure:
    """Draw loss, accuracy and MCC over the epochs of one run, on train, val, and dev if it was tracked.

    A vertical line marks the selected epoch, markers on it the reported dev metrics.
    """
    figure, axes = _panels(f"{run.name} ({run.group}, seed {run.summary['seed']})")
    tracked = list(run.evaluations[0].get("dev", {}))
    best_epoch = run.summary["best"]["epoch"]
    reported = [name for name in run.summary["splits"] if name != "val"]
    for axis, (key, _) in zip(axes, PANELS, strict=True):
        scale = 100 if key == "accuracy" else 1
        for style, (part, label) in enumerate((("train", "train (dropout on)"), ("val", "validation"))):
            # train has no accuracy and MCC if its sentences have no labels
            values = [scale * record[part].get(key, math.nan) for record in run.evaluations]
            _line(axis, run, values, style, label)
        for style, split in enumerate(reported, start=2):
            if split in tracked:
                _line(axis, run, [scale * each["dev"][split][key] for each in run.evaluations], style, split)
            axis.plot(
                [best_epoch],
                [scale * run.summary["splits"][split][key]],
                MARKERS[style % len(MARKERS)],
                color=PALETTE[style % len(PALETTE)],
                markersize=9,
                markeredgecolor="white",
                label=f"{split}, reported" + (" (tuned threshold)" if run.summary["threshold"] else ""),
                zorder=5,
            )
        axis.axvline(best_epoch, color="0.6", linewidth=1, zorder=0, label="selected epoch")
    if reported:
        _majority_line(axes[1], run, reported[0])
    _legend_below(figure)
    return figure


def draw_overlay(runs: Sequence[RunData]) -> Figure:
    """Draw validation loss, accuracy and MCC of several runs in one figure; seeds share a colour."""
    figure, axes = _panels("validation split")
    groups = list(dict.fromkeys(run.group for run in runs))
    for axis, (key, _) in zip(axes, PANELS, strict=True):
        scale = 100 if key == "accuracy" else 1
        for run in runs:
            values = [scale * record["val"][key] for record in run.evaluations]
            _line(axis, run, values, groups.index(run.group), run.group)
    _majority_line(axes[1], runs[0], "val")
    _legend_below(figure)
    return figure


def draw_comparison(groups: Mapping[str, Bars], majority_rates: Mapping[str, float]) -> Figure:
    """Draw bars of accuracy and MCC on every dev split, one colour per experiment (key of `groups`).

    A bar is the mean over seeds, its whisker the 95 % bootstrap interval of the mean over sentences. If there
    are several seeds, each is a dot.
    """
    splits = list(next(iter(groups.values())))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    width = 0.8 / len(groups)
    for axis, (key, title) in zip(axes, PANELS[1:], strict=True):
        scale = 100 if key == "accuracy" else 1
        for style, (label, bars) in enumerate(groups.items()):
            xs = [i - 0.4 + width * (style + 0.5) for i in range(len(splits))]
            _bars(axis, xs, width, style, label, [bars[split][key] for split in splits], scale)
        if key == "accuracy":
            for i, split in enumerate(splits):
                rate = 100 * majority_rates[split]
                ends = [i - 0.45, i + 0.45]
                axis.plot(ends, [rate, rate], ":", color="black", linewidth=1.5, label="majority rate")
            lowest = min(bars[split][key].low for bars in groups.values() for split in splits)
            axis.set_ylim(bottom=max(0.0, 100 * lowest - 5))  # the bars are far from 0
        else:
            axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(splits)), [_split_title(split) for split in splits])
        _style_axis(axis, title)
    title = "mean over seeds with its 95 % bootstrap interval over sentences; dots: seeds"
    figure.suptitle(title, fontsize=FONT_SIZE)
    _legend_below(figure)
    return figure


def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure in the format of the path's suffix; equal figures give equal bytes."""
    FigureCanvasAgg(figure)
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=dpi, metadata=metadata.get(path.suffix[1:]))


def _panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = list(figure.subplots(1, 3))
    for axis, (_, label) in zip(axes, PANELS, strict=True):
        _style_axis(axis, label)
        axis.set_xlabel("epoch", fontsize=FONT_SIZE)
    figure.suptitle(title, fontsize=FONT_SIZE + 1)
    return figure, axes


def _style_axis(axis: Axes, label: str) -> None:
    axis.set_ylabel(label, fontsize=FONT_SIZE)
    axis.tick_params(labelsize=FONT_SIZE)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Axes, run: RunData, values: Sequence[float], style: int, label: str) -> None:
    axis.plot(
        [record["epoch"] for record in run.evaluations],
        values,
        DASHES[style % len(DASHES)],
        color=PALETTE[style % len(PALETTE)],
        marker=MARKERS[style % len(MARKERS)],
        markersize=4,
        linewidth=1.5,
        label=label,
    )


def _majority_line(axis: Axes, run: RunData, split: str) -> None:
    rate = 100 * run.summary["splits"][split]["majority_rate"]
    label = f"majority rate ({_split_title(split)})"
    axis.axhline(rate, color="black", linestyle=":", linewidth=1.2, label=label)


def _bars(
    axis: Axes, xs: Sequence[float], width: float, style: int, label: str, bars: Sequence[Bar], scale: float
) -> None:
    below = [max(0.0, scale * (bar.mean - bar.low)) for bar in bars]
    above = [max(0.0, scale * (bar.high - bar.mean)) for bar in bars]
    axis.bar(
        xs,
        [scale * bar.mean for bar in bars],
        width * 0.92,
        yerr=[below, above],
        capsize=3,
        color=PALETTE[style % len(PALETTE)],
        hatch=("", "//", "..", "xx")[style % 4],
        edgecolor="white",
        ecolor="0.2",
        label=label,
    )
    for x, bar in zip(xs, bars, strict=True):
        if len(bar.seeds) > 1:
            dots = [scale * value for value in bar.seeds]
            axis.plot([x] * len(dots), dots, "o", color="white", markeredgecolor="0.2", markersize=4)


def _split_title(split: str) -> str:
    return {"val": "validation", "id_dev": "in-domain dev", "ood_dev": "out-of-domain dev"}.get(split, split)


def _legend_below(figure: Figure) -> None:
    """Add one legend for all axes, with the first of equal labels."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        [*handles.values()],
        [*handles],
        loc="outside lower center",
        ncols=4,
        fontsize=FONT_SIZE,
        frameon=False,
    )
