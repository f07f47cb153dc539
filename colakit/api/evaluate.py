"""Evaluation of any number of models on labelled splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colakit.api.recorded_data import load_corpus_of
from colakit.api.session import Session
from colakit.data.corpora import Corpus
from colakit.errors import ColakitError
from colakit.evaluation.collect import collect_predictions, with_ensembles
from colakit.evaluation.slices import SplitSlices, slice_splits
from colakit.evaluation.split_report import Evaluation, report_split
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
    models, reporter = expand_runs(models, nested=True), session.reporter
    corpus = load_corpus_of(session, models)
    if session.dry_run:
        return _show_plan(session, models, corpus)
    evaluation = measure_models(session, models, corpus)
    print_tables(evaluation.tables(classes=session.settings.evaluate.classes), reporter)
    for text in evaluation.unequal:
        reporter.warn(text)
    for report in evaluation.reports.values():
        report.print_warnings(evaluation.inputs.corpus.label_names, reporter)
    results = evaluation.as_dict()
    write_results(session.out, "evaluation", results, evaluation.tables(), reporter)
    if session.out is not None:
        plot = session.settings.plot
        for name, report in evaluation.reports.items():
            figures = {each.slices.field: draw_slices(each) for each in report.slices}
            figures["confusion"] = draw_confusion(name, report.classes)
            figures["calibration"] = draw_calibration(name, report.calibration)
            for kind, figure in figures.items():
                save_figure(figure, session.out / f"{kind}-{file_name(name)}.{plot.format}", dpi=plot.dpi)
    return results


def measure_models(session: Session, models: Sequence[str], corpus: Corpus) -> Evaluation:
    """Return the results of models on the splits of `corpus` that the settings name.

    Args:
        models: run folders, ckpt.pt files or adapter folders.

    Raises:
        ColakitError: if a model, a split or a field of slices cannot be read.
    """
    settings, reporter = session.settings.evaluate, session.reporter
    splits, slices = _splits_and_slices(session, corpus)
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
    if settings.ensembles:
        inputs = with_ensembles(inputs)
    listed = {"errors": settings.errors, "disagreements": settings.disagreements}
    return Evaluation(inputs, {name: report_split(inputs, name, slices, **listed) for name in splits})


def _splits_and_slices(session: Session, corpus: Corpus) -> tuple[list[str], list[SplitSlices]]:
    """Return the splits to report on, and their slices."""
    settings = session.settings.evaluate
    splits = list(settings.splits or corpus.report_splits())
    if not settings.splits and sum(name.endswith("_dev") for name in splits) > 1:
        splits.append("dev")  # the union of these splits
    for name in splits:
        corpus.split(name).require_labels()
    return splits, slice_splits(corpus, splits, settings, session.reporter)


def _show_plan(session: Session, models: Sequence[str], corpus: Corpus) -> dict[str, Any]:
    splits, slices = _splits_and_slices(session, corpus)
    for model in models:
        if not Path(model).expanduser().exists():
            raise ColakitError(
                f"{model}: not found", hint="Give a run folder, a ckpt.pt or an adapter folder."
            )
    counts = {f"{each.split} by {each.field}": len(each.slices) for each in slices}
    names = ", ".join([*splits, *(f"{name} ({count} slices)" for name, count in counts.items())])
    session.reporter.result(f"would evaluate {', '.join(models)} on {names} ({session.compute})")
    return {"models": list(models), "splits": list(splits), "parts": counts, "compute": str(session.compute)}
