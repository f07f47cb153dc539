"""`colakit evaluate`: any number of models on any splits, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colakit.api.recorded_data import load_corpus_of
from colakit.api.session import Session
from colakit.api.slices import SliceReport, SplitSlices, cut, draw_parts, measure_parts, part_table
from colakit.data.corpora import Corpus
from colakit.errors import ColakitError
from colakit.evaluation.collect import EvaluationInputs, ask_all
from colakit.evaluation.comparison import GroupRow, SplitComparison, compare
from colakit.evaluation.metrics import Spread
from colakit.evaluation.tables import Table, interval, keep, show, spread
from colakit.evaluation.teacher_agreement import TeachingRow, compare_with_teachers
from colakit.storage.folds import expand_folds
from colakit.training.task_data import percent


@dataclass(frozen=True)
class SplitReport:
    """All that is found about one split."""

    comparison: SplitComparison
    taught: tuple[TeachingRow, ...]
    parted: tuple[SliceReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            **asdict(self.comparison),
            "teaching": [asdict(row) for row in self.taught],
            "parts": {parted.parting.field: parted.as_dict() for parted in self.parted},
        }


def run(session: Session, *, models: list[str]) -> dict[str, Any]:
    """Print the comparison; with `--out`, also write evaluation.json, evaluation.md and heat maps there."""
    session.check_out()
    models = expand_folds(models)
    corpus = load_corpus_of(session, models)
    names = session.settings.evaluate.splits or _default_splits(corpus)
    for name in names:
        corpus.split(name).require_labels()
    partings = cut(session, corpus, names)
    if session.dry_run:
        return _plan(session, models, names, partings)
    asked = ask_all(session, models, corpus, names)
    found = [_measure(asked, name, partings) for name in names]
    tables = [table for report in found for table in _tables(report)]
    show(session, tables)
    _remark(session, found, asked.corpus.label_names)
    result = {
        "corpus": asked.corpus.name,
        "splits": {name: report.as_dict() for name, report in zip(names, found, strict=True)},
    }
    keep(session, "evaluation", result, tables)
    draw_parts(session, [parted for report in found for parted in report.parted])
    return result


def _plan(
    session: Session, models: Sequence[str], splits: Sequence[str], partings: Sequence[SplitSlices]
) -> dict[str, Any]:
    for model in models:
        if not Path(model).expanduser().exists():
            raise ColakitError(
                f"{model}: not there", hint="Give a run folder, a ckpt.pt or an adapter folder."
            )
    parts = {f"{parting.split} by {parting.field}": len(parting.parts) for parting in partings}
    also = "".join(f", {name} ({count} parts)" for name, count in parts.items())
    session.reporter.result(
        f"would measure {', '.join(models)} on {', '.join(splits)}{also} ({session.compute})"
    )
    return {"models": list(models), "splits": list(splits), "parts": parts, "compute": str(session.compute)}


def _measure(asked: EvaluationInputs, name: str, partings: Sequence[SplitSlices]) -> SplitReport:
    labels, answers = asked.corpus.split(name).require_labels(), asked.answers[name]
    return SplitReport(
        compare(name, labels, answers),
        compare_with_teachers(labels, answers, asked.profiles),
        tuple(measure_parts(parting, labels, answers) for parting in partings if parting.split == name),
    )


def _default_splits(corpus: Corpus) -> list[str]:
    names = corpus.report_splits()
    return [*names, "dev"] if sum(name.endswith("_dev") for name in names) > 1 else names


def _tables(report: SplitReport) -> list[Table]:
    comparison = report.comparison
    where = f"{comparison.split} ({comparison.models[0].metrics.num_examples} sentences)"
    tables = [_model_table(where, comparison)]
    if any(row.num_seeds > 1 for row in comparison.groups):
        tables.append(_group_table(where, comparison))
    if comparison.pairs:
        tables.append(_pair_table(where, comparison))
    if report.taught:
        tables.append(_teaching_table(where, report.taught))
    return [*tables, *(part_table(parted) for parted in report.parted)]


def _model_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            row.model,
            interval(row.accuracy, 100, 1),
            percent(row.metrics.majority_rate),
            interval(row.mcc, 1, 3),
            f"{row.metrics.loss:.3f}",
        ]
        for row in comparison.models
    ]
    title = f"{where}: models, with 95 % bootstrap intervals"
    return title, ["model", "accuracy %", "majority %", "MCC", "loss"], rows


def _group_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            row.group,
            _counted(row),
            spread(Spread(row.accuracy_mean, row.accuracy_sd), 100, 2),
            percent(row.majority_rate),
            spread(Spread(row.mcc_mean, row.mcc_sd), 1, 3),
        ]
        for row in comparison.groups
    ]
    over = "seeds and folds" if any(row.num_folds for row in comparison.groups) else "seeds"
    return f"{where}: mean ± sd over {over}", ["experiment", "seeds", "accuracy %", "majority %", "MCC"], rows


def _counted(row: GroupRow) -> str:
    """Write how many seeds there are, or folds."""
    if not row.num_folds:
        return str(row.num_seeds)
    runs = "" if row.num_seeds == row.num_folds else f"{row.num_seeds} runs of "
    return f"{runs}{row.num_folds} folds"


def _pair_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            f"{row.first} - {row.second}",
            interval(row.accuracy, 100, 1, signed=True),
            interval(row.mcc, 1, 3, signed=True),
            ", ".join(f"{p:.2g}" for p in row.mcnemar_p) or "-",
        ]
        for row in comparison.pairs
    ]
    columns = ["first minus second", "Δ accuracy, points", "Δ MCC", "McNemar p"]
    return f"{where}: differences, paired over sentences, seeds held fixed", columns, rows


def _teaching_table(where: str, rows: Sequence[TeachingRow]) -> Table:
    cells = [
        [
            row.group,
            " + ".join(row.teachers),
            str(row.num_seeds),
            spread(row.agreement, 100, 1),
            "-" if row.kappa is None else spread(row.kappa, 1, 2),
            "-" if row.mcc_kept is None else interval(row.mcc_kept, 100, 0),
            f"{row.num_parameters:,}",
            f"{row.teacher_parameters:,}",
            f"1/{row.teacher_parameters / row.num_parameters:.1f}",
        ]
        for row in rows
    ]
    columns = ["student", "teacher", "seeds", "same answer %", "kappa", "MCC kept %"]
    return (
        f"{where}: students beside their teachers",
        [*columns, "parameters", "teacher's", "ratio"],
        cells,
    )


def _remark(session: Session, found: Sequence[SplitReport], label_names: Sequence[str]) -> None:
    for report in found:
        split = report.comparison.split
        for row in report.comparison.models:
            if row.metrics.collapsed:
                answer = label_names[int(np.argmax(row.metrics.predicted_rates))]
                session.reporter.warn(
                    f"{row.model} answers {answer!r} to all of {split}: MCC 0, "
                    f"majority rate {percent(row.metrics.majority_rate)} %"
                )
        for taught in report.taught:
            if taught.mcc_kept is None:
                session.reporter.say(
                    f"{split}: no share of MCC kept by {taught.group}: its teacher's, "
                    f"{interval(taught.teacher_mcc, 1, 3)}, is too near 0 to divide by"
                )
