"""Evaluation of any number of models on labelled splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colakit.api.recorded_data import load_corpus_of
from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.evaluation.budget import training_table, unequal_controls
from colakit.evaluation.collect import collect_predictions
from colakit.evaluation.slices import SplitSlices, slice_splits
from colakit.evaluation.split_report import report_split
from colakit.evaluation.tables import print_tables, write_results
from colakit.reports.figures.calibration import draw_calibration
from colakit.reports.figures.confusion import draw_confusion
from colakit.reports.figures.heatmaps import draw_slices
from colakit.reports.figures.style import save_figure
from colakit.storage.run_set import expand_runs
from colakit.utils.text import file_name


def evaluate(session: Session, models: Sequence[str]) -> dict[str, Any]:
    """Compare models on labelled splits; print the tables and return the results.

    With `session.out`, evaluation.json, evaluation.md and the heat maps of slices are written there.

    Args:
        models: run folders, ckpt.pt files, adapter folders, or folders of folds.

    Raises:
        ColakitError: if a model, a split or a field of slices cannot be read.
    """
    session.check_out()
    models = expand_runs(models)
    corpus = load_corpus_of(session, models)
    settings, reporter = session.settings.evaluate, session.reporter
    splits = settings.splits or corpus.report_splits()
    if not settings.splits and sum(name.endswith("_dev") for name in splits) > 1:
        splits = [*splits, "dev"]  # the union of these splits
    for name in splits:
        corpus.split(name).require_labels()
    slices = slice_splits(corpus, splits, settings, reporter)
    if session.dry_run:
        return _show_plan(session, models, splits, slices)
    inputs = collect_predictions(
        models,
        corpus,
        splits,
        compute=session.compute,
        batch_size=settings.batch_size,
        arrays=session.arrays,
        reporter=reporter,
        base=session.settings.base if session.resolved.was_typed("base") else None,
    )
    listed = {"errors": settings.errors, "disagreements": settings.disagreements}
    reports = {name: report_split(inputs, name, slices, **listed) for name in splits}
    training = training_table(inputs.models, inputs.groups)
    shown = (table for report in reports.values() for table in report.tables(classes=settings.classes))
    print_tables([training, *shown], reporter)
    for text in (unequal := unequal_controls(inputs.models, inputs.groups)):
        reporter.warn(text)
    for report in reports.values():
        report.print_warnings(inputs.corpus.label_names, reporter)
    results = {
        "corpus": inputs.corpus.name,
        "training": [{"model": model.name, **model.facts} for model in inputs.models],
        "unequal": unequal,
        "splits": {name: report.as_dict() for name, report in reports.items()},
    }
    tables = [training, *(table for report in reports.values() for table in report.tables())]
    write_results(session.out, "evaluation", results, tables, reporter)
    if session.out is not None:
        plot = session.settings.plot
        for name, report in reports.items():
            figures = {each.slices.field: draw_slices(each) for each in report.slices}
            figures["confusion"] = draw_confusion(name, report.classes)
            figures["calibration"] = draw_calibration(name, report.calibration)
            for kind, figure in figures.items():
                save_figure(figure, session.out / f"{kind}-{file_name(name)}.{plot.format}", dpi=plot.dpi)
    return results


def _show_plan(
    session: Session, models: Sequence[str], splits: Sequence[str], slices: Sequence[SplitSlices]
) -> dict[str, Any]:
    for model in models:
        if not Path(model).expanduser().exists():
            raise ColakitError(
                f"{model}: not found", hint="Give a run folder, a ckpt.pt or an adapter folder."
            )
    counts = {f"{each.split} by {each.field}": len(each.slices) for each in slices}
    names = ", ".join([*splits, *(f"{name} ({count} slices)" for name, count in counts.items())])
    session.reporter.result(f"would evaluate {', '.join(models)} on {names} ({session.compute})")
    return {"models": list(models), "splits": list(splits), "parts": counts, "compute": str(session.compute)}
