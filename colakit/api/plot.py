"""`plot`: figures from run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.config.yaml import read_yaml
from colakit.errors import ColakitError
from colakit.evaluation.budget import training_facts, training_table, unequal_controls
from colakit.evaluation.comparison import ModelInfo, group_names, named_settings
from colakit.evaluation.metrics import STATISTICS, Bootstrap
from colakit.evaluation.tables import print_tables
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
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_set import expand_runs
from colakit.utils.console import Reporter

COMPARISON_FOLDER = Path("plots")  # figures of several runs, unless --out is given


def plot(session: Session, *, runs: list[Path]) -> dict[str, Any]:
    """Draw each run's curves into `RUN/plots/`, and comparisons of several runs into `--out`.

    The curves of a single run go to `--out` if it is given.
    """
    session.check_out()
    folders = [RunFolder(Path(path)) for path in expand_runs([str(run_folder(run)) for run in runs])]
    data = _read_runs(folders, session.reporter)
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


def _read_runs(folders: Sequence[RunFolder], reporter: Reporter) -> list[RunData]:
    summaries = [folder.read_summary() for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        if "experiment" not in summary:
            raise ColakitError(
                f"{folder.path}: is a run of pre-training; there is nothing to plot",
                hint="Give runs of finetune, distill or train-scratch.",
            )
    names = distinct_names([folder.path.resolve() for folder in folders])
    models = [_model_info(*run) for run in zip(folders, names, summaries, strict=True)]
    groups = group_names(models)
    print_tables([training_table(models, groups)], reporter)
    for text in unequal_controls(models, groups):
        reporter.warn(text)
    runs = []
    for folder, name, group, summary in zip(folders, names, groups, summaries, strict=True):
        records = [record for record in folder.read_metrics() if record.get("event") == "evaluation"]
        if not records:
            raise ColakitError(
                f"{folder.path}: metrics.jsonl has no evaluation", hint="Give the folder of a training run."
            )
        runs.append(RunData(name, group, records, summary))
    return runs


def _model_info(folder: RunFolder, name: str, summary: Mapping[str, Any]) -> ModelInfo:
    settings = read_yaml(folder.settings) if folder.settings.is_file() else {}
    return ModelInfo(
        name,
        summary["model"],
        summary["experiment"],
        summary["seed"],
        summary.get("leave_out"),
        settings=named_settings({**summary, "settings": settings}),
        facts=training_facts(summary),
    )


def _group_bars(folders: Sequence[RunFolder], runs: Sequence[RunData]) -> dict[str, Bars]:
    """Return experiment -> accuracy and MCC on the dev splits that all runs have."""
    predictions = [folder.read_predictions() for folder in folders]
    splits = [name for name in predictions[0] if name != "val" and all(name in each for each in predictions)]
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
            sample = Bootstrap(members[0][split][0], [each[split][1] for each in members], num_labels)
            bars[split] = {}
            for key in STATISTICS:
                mean = sample.mean(key, range(len(members)))
                bars[split][key] = Bar(mean.value, mean.low, mean.high, sample.values[key].tolist())
        groups[group] = bars
    return groups
