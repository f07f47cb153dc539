"""`plot`: figures from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.evaluation.comparison import ModelInfo, group_names
from colakit.evaluation.metrics import STATISTICS, Bootstrap
from colakit.inference.model_names import distinct_names, run_folder
from colakit.reports.figures.plots import (
    Bar,
    Bars,
    RunData,
    draw_comparison,
    draw_curves,
    draw_overlay,
    save_figure,
)
from colakit.storage.folds import expand_folds
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import ClassifierSummary, Summary

COMPARISON_FOLDER = Path("plots")  # figures of several runs, unless --out is given
MAX_CELLS = 2**25  # sentences x models x classes of a bootstrap


def plot(session: Session, *, runs: list[Path]) -> dict[str, Any]:
    """Draw each run's curves into `RUN/plots/`, and comparisons of several runs into `--out`.

    The curves of a single run go to `--out` if it is given.
    """
    session.check_out()
    folders = [RunFolder(Path(path)) for path in expand_folds([str(run_folder(run)) for run in runs])]
    data = _read_runs(folders)
    suffix, dpi = session.settings.plot.format, session.settings.plot.dpi
    single_out = session.out if len(folders) == 1 else None
    figures = {
        (single_out or folder.plots) / f"curves.{suffix}": draw_curves(each)
        for folder, each in zip(folders, data, strict=True)
    }
    if len(data) > 1:
        out = session.out or COMPARISON_FOLDER
        rates = {name: split["majority_rate"] for name, split in data[0].summary["splits"].items()}
        figures[out / f"overlay.{suffix}"] = draw_overlay(data)
        figures[out / f"comparison.{suffix}"] = draw_comparison(_group_bars(folders, data), rates)
    for path, figure in figures.items():
        if not session.dry_run:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_figure(figure, path, dpi=dpi)
            except OSError as error:
                raise ColakitError(f"{path}: {error.strerror}", hint="Choose a folder with --out.") from error
        session.reporter.result(f"{'would write' if session.dry_run else 'wrote'} {path}")
    return {"figures": [str(path) for path in figures]}


def _read_runs(folders: Sequence[RunFolder]) -> list[RunData]:
    for folder in folders:
        if folder.read_summary(Summary).experiment is None:
            raise ColakitError(
                f"{folder.path}: is a run of pre-training; there is nothing to plot",
                hint="Give runs of finetune, distill or train-scratch.",
            )
    summaries = [folder.read_summary(ClassifierSummary) for folder in folders]
    names = distinct_names([folder.path.resolve() for folder in folders])
    models = [
        ModelInfo(name, summary.model, summary.experiment, summary.seed, summary.leave_out)
        for name, summary in zip(names, summaries, strict=True)
    ]
    return [
        RunData(name, group, [each.model_dump() for each in folder.read_evaluations()], summary.model_dump())
        for folder, name, group, summary in zip(folders, names, group_names(models), summaries, strict=True)
    ]


def _group_bars(folders: Sequence[RunFolder], runs: Sequence[RunData]) -> dict[str, Bars]:
    """Return experiment -> accuracy and MCC on the dev splits that all runs have."""
    predictions = [folder.read_predictions() for folder in folders]
    splits = [name for name in predictions[0] if name != "val" and all(name in each for each in predictions)]
    if not splits or not runs[0].summary["splits"].keys() >= set(splits):
        raise ColakitError(
            f"{folders[0].predictions}: the runs have no dev split in common, or summary.json lacks one",
            hint="Plot runs on the same dataset.",
        )
    for split in splits:
        if any(not np.array_equal(each[split][0], predictions[0][split][0]) for each in predictions):
            raise ColakitError(
                f"{split}: the runs were evaluated on different data", hint="Plot runs on the same dataset."
            )
    groups: dict[str, Bars] = {}
    for group in dict.fromkeys(run.group for run in runs):
        members = [each for each, run in zip(predictions, runs, strict=True) if run.group == group]
        num_labels = len(next(run for run in runs if run.group == group).summary["labels"])
        bars: dict[str, dict[str, Bar]] = {}
        for split in splits:
            labels = members[0][split][0]
            if len(labels) * len(members) * num_labels > MAX_CELLS:
                raise ColakitError(
                    f"{split}: {len(labels):,} sentences of {num_labels:,} classes are too many"
                )
            sample = Bootstrap(labels, [each[split][1] for each in members], num_labels)
            bars[split] = {}
            for key in STATISTICS:
                mean = sample.mean(key, range(len(members)))
                bars[split][key] = Bar(mean.value, mean.low, mean.high, sample.values[key].tolist())
        groups[group] = bars
    return groups
