"""`plot`: figures of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.evaluation.comparison import Entrant, distinct_names, group_names
from colakit.evaluation.metrics import bootstrap, point
from colakit.reports.figures.plots import (
    Bar,
    GroupData,
    RunData,
    draw_comparison,
    draw_curves,
    draw_overlay,
    save_figure,
)
from colakit.storage.folds import expand_folds
from colakit.storage.model_file import CHECKPOINT_NAME
from colakit.storage.run_folder import RunFolder

COMPARISONS = Path("plots")  # where figures of several runs go, unless `--out` names another folder


def plot(session: Session, *, runs: list[Path]) -> dict[str, Any]:
    """Draw each run's curves into the run's own `plots/`, and what compares several into `--out`.

    Of one run, `--out` takes the curves.
    """
    session.check_out()
    runs = [run.parent if run.name == CHECKPOINT_NAME else run for run in runs]
    runs = [Path(run) for run in expand_folds([str(run) for run in runs])]
    found = _read_all(runs)
    form, dpi = session.settings.plot.format, session.settings.plot.dpi
    alone = session.out if len(runs) == 1 else None
    figures = {
        (alone or RunFolder(path).plots) / f"curves.{form}": draw_curves(data)
        for path, data in zip(runs, found, strict=True)
    }
    if len(found) > 1:
        folder = session.out or COMPARISONS
        figures[folder / f"overlay.{form}"] = draw_overlay(found)
        figures[folder / f"comparison.{form}"] = draw_comparison(_groups(runs, found), _majority_rates(found))
    for path, figure in figures.items():
        if not session.dry_run:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_figure(figure, path, dpi=dpi)
            except OSError as error:
                raise ColakitError(f"{path}: {error.strerror}", hint="Choose a folder with --out.") from error
        session.reporter.result(f"{'would write' if session.dry_run else 'wrote'} {path}")
    return {"figures": [str(path) for path in figures]}


def _read_all(paths: Sequence[Path]) -> list[RunData]:
    summaries = [RunFolder(path).read_summary() for path in paths]
    for path, summary in zip(paths, summaries, strict=True):
        if "experiment" not in summary:
            raise ColakitError(
                f"{path}: made a base, no classifier; there is no figure of it",
                hint="Give runs of finetune, distill or train-scratch.",
            )
    names = distinct_names([path.resolve() for path in paths])
    entrants = [
        Entrant(name, summary["model"], summary["experiment"], summary["seed"], summary.get("leave_out"))
        for name, summary in zip(names, summaries, strict=True)
    ]
    found = []
    for path, name, group, summary in zip(paths, names, group_names(entrants), summaries, strict=True):
        records = [record for record in RunFolder(path).read_metrics() if record.get("event") == "evaluation"]
        if not records:
            raise ColakitError(
                f"{path}: metrics.jsonl holds no evaluation", hint="Give the folder of a training run."
            )
        found.append(RunData(name, group, records, summary))
    return found


def _majority_rates(runs: Sequence[RunData]) -> dict[str, float]:
    """Return the majority rate of every reported split, 0 to 1."""
    return {name: figures["majority_rate"] for name, figures in runs[0].summary["splits"].items()}


def _groups(paths: Sequence[Path], runs: Sequence[RunData]) -> list[GroupData]:
    """Return the experiments with their dev figures and bootstrap intervals of the mean over seeds."""
    predictions = [RunFolder(path).read_predictions() for path in paths]
    shared = [split for split in predictions[0] if split != "val" and all(split in p for p in predictions)]
    for split in shared:
        if any(not np.array_equal(found[split][0], predictions[0][split][0]) for found in predictions):
            raise ColakitError(
                f"{split}: the runs were measured on different data", hint="Plot runs on one corpus together."
            )
    groups = []
    for group in dict.fromkeys(run.group for run in runs):
        members = [found for found, run in zip(predictions, runs, strict=True) if run.group == group]
        num_labels = len(next(run for run in runs if run.group == group).summary["labels"])
        bars: dict[str, dict[str, Bar]] = {}
        for split in shared:
            labels, answers = members[0][split][0], [found[split][1] for found in members]
            bars[split] = {}
            for key in ("accuracy", "mcc"):
                whole = bootstrap(key, labels, answers, num_labels)
                seeds = [point(key, labels, answer, num_labels) for answer in answers]
                bars[split][key] = Bar(whole.value, whole.low, whole.high, seeds)
        groups.append(GroupData(group, bars))
    return groups
