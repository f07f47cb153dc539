"""The content of a report on trained runs: what was done, what came out, and what it does not show."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colakit.data.checks import check_corpus
from colakit.data.corpora import Corpus
from colakit.evaluation.split_report import Evaluation, SplitReport
from colakit.evaluation.tables import Table, percent
from colakit.reports.conclusions import accuracy_of, conclusions, limits, mcc_of, title_of
from colakit.reports.document import (
    Block,
    Bullets,
    Commands,
    Document,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
)
from colakit.reports.figures.calibration import draw_calibration
from colakit.reports.figures.confusion import draw_confusion
from colakit.reports.figures.curves import RunData, draw_curves, draw_overlay
from colakit.reports.figures.heatmaps import draw_slices
from colakit.storage.run_schemas import Environment

MAX_CURVES = 8  # experiments whose curves are drawn one by one


@dataclass(frozen=True)
class ReportedRun:
    """A run with what its folder records.

    Attributes:
        method: its method in words and formulas.
        changed: settings that differ from the defaults: key, value, origin.
        held_out: fraction and seed of the validation split.
        tracked_dev: whether dev was measured during training.
    """

    data: RunData
    environment: Environment
    method: Sequence[Block]
    changed: Sequence[tuple[str, str, str]]
    held_out: tuple[float, int]
    tracked_dev: bool

    @property
    def is_baseline(self) -> bool:
        """Whether it was not trained step by step."""
        return not self.data.evaluations


def make_document(
    evaluation: Evaluation,
    runs: Sequence[ReportedRun],
    comparison: Picture | None,
    extra: Sequence[Block] = (),
) -> Document:
    """Return the report.

    Args:
        runs: those that were evaluated, in the same order.
        comparison: figure of all experiments.
        extra: the section of a sweep.
    """
    corpus = evaluation.inputs.corpus
    first: dict[str, ReportedRun] = {}  # experiment -> its first run
    for group, run in zip(evaluation.inputs.groups, runs, strict=True):
        first.setdefault(group, run)
    teachers = {teacher["fingerprint"] for run in runs for teacher in run.data.summary.get("teachers") or ()}
    document = Document(f"Sentence classification on {Path(corpus.name).stem}", conclusions(evaluation))
    document.blocks += [
        *_data(corpus, runs),
        *_methods(first),
        *_parameters(first),
        *_results(evaluation, comparison),
        *_curves(first, runs),
        *_classes(evaluation),
        *_slices(evaluation),
        *extra,
        *_cost(evaluation, runs),
        *_reproduction(runs),
        Heading("Limits"),
        Bullets(limits(evaluation, len(teachers), tracked_dev=any(run.tracked_dev for run in runs))),
    ]
    return document


def _data(corpus: Corpus, runs: Sequence[ReportedRun]) -> Iterator[Block]:
    yield Heading("Task and data")
    names = ", ".join(corpus.label_names[:10]) + (" …" if len(corpus.label_names) > 10 else "")
    shares = sorted({run.held_out for run in runs})
    held_out = ", ".join(f"{100 * share:g} % (seed {seed})" for share, seed in shares)
    yield Paragraph(
        f"Sentences are labelled with one of {len(corpus.label_names)} classes: {names}. The validation "
        f"split is {held_out} of train; duplicate sentences stay on one side. The table shows the files' "
        "splits."
    )
    of_files = replace(corpus, splits={k: split for k, split in corpus.splits.items() if split.rows is None})
    rows = [
        [
            check.name,
            f"{check.rows:,}",
            ", ".join(f"{name} {count:,}" for name, count in [*check.counts.items()][:10]) or "unlabelled",
            "-" if check.majority_rate is None else percent(check.majority_rate),
            f"{check.duplicate_rows:,}",
            f"{check.in_train:,}" if check.name != "train" else "-",
        ]
        for check in check_corpus(of_files)
    ]
    columns = ["split", "sentences", "labels", "majority %", "duplicates", "also in train"]
    yield TableBlock("data", ("Splits of the data", columns, rows))


def _methods(first: Mapping[str, ReportedRun]) -> Iterator[Block]:
    yield Heading("Method")
    for group, run in first.items():
        yield Heading(group, 2)
        yield from run.method
    rows = [[group, *row] for group, run in first.items() for row in run.changed]
    yield Heading("Settings", 2)
    yield Paragraph(
        "Settings of the first run of each experiment that differ from the defaults, and their origin."
    )
    table: Table = ("Settings other than the defaults", ["experiment", "setting", "value", "origin"], rows)
    yield TableBlock("settings", table)


def _parameters(first: Mapping[str, ReportedRun]) -> Iterator[Block]:
    yield Heading("Parameters")
    rows = []
    totals = {group: run.data.summary.get("parameters") for group, run in first.items()}
    largest = max((each["total"] for each in totals.values() if each), default=1)
    for group, parameters in totals.items():
        if parameters:
            rows.append(
                [
                    group,
                    f"{parameters['total']:,}",
                    f"{parameters['trainable']:,}",
                    f"{100 * (1 - parameters['trainable'] / parameters['total']):.2f}",
                    f"1/{largest / parameters['total']:.1f}",
                ]
            )
    columns = ["experiment", "parameters", "trained", "reduction %", "of the largest"]
    yield TableBlock(
        "parameters", ("Parameters; the reduction is the share that is not trained", columns, rows)
    )


def _results(evaluation: Evaluation, comparison: Picture | None) -> Iterator[Block]:
    yield Heading("Results")
    yield Paragraph(
        "Accuracy stands beside the majority rate and MCC (Matthews correlation: 1 is perfect, 0 is chance). "
        "The deviation is over seeds (n-1); intervals are 95 % over sentences."
    )
    if comparison is not None:
        yield comparison
    for split, report in evaluation.reports.items():
        yield Heading(title_of(split), 2)
        yield TableBlock(f"results-{split}", results_table(split, report))
        for kind, table in report.differences().items():
            yield TableBlock(f"{kind}-{split}", table)


def results_table(split: str, report: SplitReport) -> Table:
    """Return the metrics of every experiment on a split, with the majority label first."""
    comparison = report.comparison
    majority = comparison.groups[0].majority_rate
    rows = [["majority label", "-", percent(majority), "0"]]
    rows += [[row.group, str(row.num_seeds), accuracy_of(row), mcc_of(row)] for row in comparison.groups]
    size = comparison.models[0].metrics.num_examples
    title = f"{title_of(split)}, {size:,} sentences: mean ± sd over runs"
    return title, ["experiment", "runs", "accuracy %", "MCC"], rows


def _curves(first: Mapping[str, ReportedRun], runs: Sequence[ReportedRun]) -> Iterator[Block]:
    trained = {group: run for group, run in first.items() if not run.is_baseline}
    if not trained:
        return
    yield Heading("Training curves")
    yield Paragraph("Train is measured on its batches with dropout, the validation split after each epoch.")
    if len(runs) > 1:
        overlay = draw_overlay([run.data for run in runs if not run.is_baseline])
        yield Picture("curves-all", "Losses, accuracy and MCC of all experiments over the steps", overlay)
    for number, (group, run) in enumerate([*trained.items()][:MAX_CURVES]):
        caption = f"Loss, accuracy and MCC of {group}, seed {run.data.summary['seed']}"
        yield Picture(f"curves-{number}", caption, draw_curves(run.data))


def _classes(evaluation: Evaluation) -> Iterator[Block]:
    yield Heading("Classes and calibration")
    for split, report in evaluation.reports.items():
        if split == "dev" and len(evaluation.reports) > 1:
            continue  # the union of splits already shown
        where = title_of(split)
        yield Picture(f"confusion-{split}", f"{where}: confusion", draw_confusion(split, report.classes))
        yield Picture(
            f"calibration-{split}",
            f"{where}: share of right answers by confidence, before and after the temperature",
            draw_calibration(split, report.calibration),
        )
        yield TableBlock(f"calibration-{split}", report.calibration_table())


def _slices(evaluation: Evaluation) -> Iterator[Block]:
    slices = [each for report in evaluation.reports.values() for each in report.slices]
    if slices:
        yield Heading("Slices")
    for each in slices:
        split, field = each.slices.split, each.slices.field
        yield Picture(f"slices-{field}-{split}", f"{title_of(split)}: MCC by {field}", draw_slices(each))


def _cost(evaluation: Evaluation, runs: Sequence[ReportedRun]) -> Iterator[Block]:
    yield Heading("Time and memory")
    rows = []
    for name, run in zip((model.name for model in evaluation.inputs.models), runs, strict=True):
        summary = run.data.summary
        speed, memory = summary.get("examples_per_second"), summary.get("peak_memory_mib")
        rows.append(
            [
                name,
                f"{summary['steps']:,}" if "steps" in summary else "-",
                f"{summary['examples']:,}" if "examples" in summary else "-",
                f"{summary['seconds']:,.0f}" if "seconds" in summary else "-",
                "-" if speed is None else f"{speed:,.0f}",
                f"{memory:,}" if memory else "-",
                str(summary.get("compute") or f"{run.environment.device} ({run.environment.reason})"),
            ]
        )
    columns = ["run", "steps", "sentences", "seconds", "sentences/s", "peak MiB", "device"]
    yield TableBlock("cost", ("Training; evaluation is included in the seconds", columns, rows))


def _reproduction(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    yield Heading("Reproduction")
    environments = list(dict.fromkeys(_versions(run.environment) for run in runs))
    yield Bullets(environments)
    lines = dict.fromkeys(_command_line(run.environment) for run in runs)
    yield Paragraph("The runs were started by these commands:")
    yield Commands([*lines])


def _versions(environment: Environment) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items() if version)
    commit = f", commit {environment.git_commit}" if environment.git_commit else ""
    return (
        f"colakit {environment.colakit}{commit}, Python {environment.python}, {packages}; "
        f"{environment.platform}, {environment.threads} threads, {environment.device}: {environment.reason}"
    )


def _command_line(environment: Environment) -> str:
    _, *words = environment.command_line or [""]
    return shlex.join(["colakit", *words])
