"""`plot`: figures from run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from colakit.api.session import Session
from colakit.config.yaml import read_yaml
from colakit.errors import ColakitError
from colakit.evaluation.budget import training_facts, training_table, unequal_controls
from colakit.evaluation.experiments import ModelInfo, group_names, named_settings
from colakit.evaluation.metrics import STATISTICS, Bootstrap, Labels, indices_by_value
from colakit.evaluation.tables import print_tables
from colakit.inference.baseline import is_baseline
from colakit.inference.model_names import distinct_names, run_folder
from colakit.reports.figures.comparison import Score, SplitScores, draw_comparison
from colakit.reports.figures.curves import RunData, draw_curves, draw_overlay
from colakit.reports.figures.style import save_figure
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import ClassifierSummary, ResultSummary, Summary
from colakit.storage.run_set import expand_runs
from colakit.utils.console import Reporter

COMPARISON_FOLDER = Path("plots")  # figures of several runs, unless --out is given
MAX_CELLS = 2**25  # sentences x models x classes of a bootstrap
ONLY_VAL = "The runs share no dev split. Epoch and threshold were chosen on the sentences shown here."


def plot(session: Session, *, runs: list[Path]) -> dict[str, Any]:
    """Draw each run's curves into `RUN/plots/`, and comparisons of several runs into `--out`.

    The curves of a single run go to `--out` if it is given.
    """
    session.check_out()
    folders = [RunFolder(Path(path)) for path in expand_runs(map(str, map(run_folder, runs)), nested=True)]
    data = read_runs(folders, session.reporter)
    suffix, dpi = session.settings.plot.format, session.settings.plot.dpi
    single_out = session.out if len(folders) == 1 else None
    figures = {
        (single_out or folder.plots) / f"curves.{suffix}": draw_curves(each)
        for folder, each in zip(folders, data, strict=True)
        if each.evaluations
    }
    if len(data) == 1 and not figures:
        raise ColakitError(
            f"{folders[0].path}: a baseline has no curves", hint="Give other runs to compare it with."
        )
    if len(data) > 1:
        out = session.out or COMPARISON_FOLDER
        if trained := [each for each in data if each.evaluations]:
            figures[out / f"overlay.{suffix}"] = draw_overlay(trained)
        figures[out / f"comparison.{suffix}"] = compare_runs(folders, data)
    for path, figure in figures.items():
        verb = "replaced" if path.exists() else "wrote"
        if not session.dry_run:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_figure(figure, path, dpi=dpi)
            except OSError as error:
                raise ColakitError(f"{path}: {error.strerror}", hint="Choose a folder with --out.") from error
        session.reporter.result(f"{'would write' if session.dry_run else verb} {path}")
    return {"figures": [str(path) for path in figures]}


def compare_runs(folders: Sequence[RunFolder], runs: Sequence[RunData]) -> Figure:
    """Draw accuracy and MCC of the runs' experiments on the dev splits that all runs have.

    Raises:
        ColakitError: if the runs were evaluated on different sentences.
    """
    splits = _split_scores([folder.read_predictions() for folder in folders], runs)
    return draw_comparison(splits, ONLY_VAL if "val" in splits else "")


def read_runs(folders: Sequence[RunFolder], reporter: Reporter) -> list[RunData]:
    """Return the runs' metrics and summaries; print the table of their training.

    Raises:
        ColakitError: if a run is not finished or not of a classifier.
    """
    for folder in folders:
        if folder.read_summary(Summary).experiment is None:
            raise ColakitError(
                f"{folder.path}: is a run of pre-training; there is nothing to plot",
                hint="Give runs of finetune, distill or train-scratch.",
            )
    summaries = [
        folder.read_summary(ResultSummary if is_baseline(folder.path) else ClassifierSummary).model_dump(
            exclude_unset=True
        )
        for folder in folders
    ]
    names = distinct_names([folder.path.resolve() for folder in folders])
    models = [_model_info(*run) for run in zip(folders, names, summaries, strict=True)]
    groups = group_names(models)
    print_tables([training_table(models, groups)], reporter)
    for text in unequal_controls(models, groups):
        reporter.warn(text)
    runs = []
    for folder, name, group, summary in zip(folders, names, groups, summaries, strict=True):
        metrics = ([], []) if is_baseline(folder.path) else folder.read_metrics()
        steps, evaluations = (
            [record.model_dump(exclude_unset=True) for record in records] for records in metrics
        )
        runs.append(RunData(name, group, steps, evaluations, summary))
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


def _split_scores(
    predictions: Sequence[Mapping[str, tuple[Labels, Labels]]], runs: Sequence[RunData]
) -> dict[str, SplitScores]:
    """Return the scores on the dev splits that all runs have, on `val` if there are none.

    Raises:
        ColakitError: if the runs share no split, or were evaluated on different sentences.
    """
    common = [name for name in predictions[0] if all(name in each for each in predictions)]
    if not common:
        raise ColakitError("the runs' predictions.json share no split", hint="Plot runs on the same dataset.")
    groups = indices_by_value([run.group for run in runs])
    splits = {}
    for split in [name for name in common if name != "val"] or ["val"]:
        labels = predictions[0][split][0]
        if any(not np.array_equal(each[split][0], labels) for each in predictions):
            raise ColakitError(
                f"{split}: the runs were evaluated on different data", hint="Plot runs on the same dataset."
            )
        num_labels = max(len(run.summary["labels"]) for run in runs)
        sample = Bootstrap(labels, [each[split][1] for each in predictions], num_labels)
        scores = {
            group: {
                name: Score(sample.mean(name, members), sample.values[name][members].tolist())
                for name in STATISTICS
            }
            for group, members in groups.items()
        }
        splits[split] = SplitScores(float(np.bincount(labels).max() / len(labels)), scores)
    return splits
