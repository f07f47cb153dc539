"""`colakit evaluate`: any number of models on any splits, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from colakit.commands.task import percent
from colakit.context import Context
from colakit.data.corpora import Corpus, Split
from colakit.engine.classifier import CHECKPOINT_NAME, SentenceClassifier, load_classifier
from colakit.engine.comparison import Answers, SplitComparison, compare, experiment_key
from colakit.engine.files import write_json, write_text
from colakit.engine.metrics import Interval
from colakit.errors import ColakitError

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def run(context: Context, *, models: list[str]) -> dict[str, Any] | None:
    """Print the comparison; with `--out`, also write evaluation.json and evaluation.md there."""
    if context.out is not None and context.out.exists() and not context.out.is_dir():
        raise ColakitError(f"--out {context.out}: is a file; a folder is wanted")
    corpus = context.load_corpus()
    splits = [corpus.split(name) for name in context.settings.evaluate.splits or _default_splits(corpus)]
    for split in splits:
        split.require_labels()
    if context.dry_run:
        context.reporter.result(f"would measure {len(models)} models on {', '.join(s.name for s in splits)}")
        return None
    answers = _ask_all(context, models, corpus, splits)
    found = [compare(split.name, split.require_labels(), answers[split.name]) for split in splits]
    tables = [table for comparison in found for table in _tables(comparison)]
    for title, columns, rows in tables:
        context.reporter.table(title, columns, rows)
    _warn_of_collapse(context, found)
    result = {"corpus": corpus.name, "splits": {comparison.split: asdict(comparison) for comparison in found}}
    if context.out is not None:
        context.out.mkdir(parents=True, exist_ok=True)
        write_json(context.out / "evaluation.json", result)
        write_text(context.out / "evaluation.md", "\n".join(_markdown(table) for table in tables))
        context.reporter.say(f"written to {context.out}")
    return result


def _default_splits(corpus: Corpus) -> list[str]:
    names = corpus.report_splits()
    return [*names, "dev"] if sum(name.endswith("_dev") for name in names) > 1 else names


def _ask_all(
    context: Context, models: Sequence[str], corpus: Corpus, splits: Sequence[Split]
) -> dict[str, list[Answers]]:
    """Return split name -> every model's answers; models are loaded one at a time."""
    answers: dict[str, list[Answers]] = {split.name: [] for split in splits}
    groups: dict[str, str] = {}
    base = context.settings.base if context.resolved.is_given("base") else None
    with context.reporter.progress("evaluate", len(models)) as bar:
        for path in models:
            classifier = load_classifier(path, base=base)
            _require_same_labels(path, classifier, corpus)
            context.compute.place(classifier.model.requires_grad_(False))
            name = _model_name(path)
            group = _group_name(groups, classifier, name)
            for split in splits:
                logits = classifier.logits(
                    split.sentences,
                    context.compute,
                    batch_size=context.settings.evaluate.batch_size,
                    cache=context.arrays,
                )
                seed = classifier.origin.get("seed")
                answers[split.name].append(Answers(name, group, seed, logits, classifier.decide(logits)))
            bar.advance(note=name)
    return answers


def _require_same_labels(path: str, classifier: SentenceClassifier, corpus: Corpus) -> None:
    unnamed = tuple(f"LABEL_{i}" for i in range(len(corpus.label_names)))
    if classifier.label_names not in (corpus.label_names, unnamed):
        raise ColakitError(
            f"{path}: its labels are {', '.join(classifier.label_names)}; "
            f"the data's are {', '.join(corpus.label_names)}",
            hint="Evaluate a model on the task it was trained for.",
        )


def _model_name(path: str) -> str:
    found = Path(path)
    return found.parent.name if found.name == CHECKPOINT_NAME and found.parent.name else found.name


def _group_name(groups: dict[str, str], classifier: SentenceClassifier, model: str) -> str:
    """Name the experiment by what it is; a second, different one of that name also by its first model."""
    key = experiment_key(classifier.origin)
    if classifier.origin.get("settings") is None:
        key = model
    if key not in groups:
        name = classifier.name
        groups[key] = f"{name} [{model}]" if name in groups.values() else name
    return groups[key]


def _tables(comparison: SplitComparison) -> list[Table]:
    where = f"{comparison.split} ({comparison.models[0].metrics.num_examples} sentences)"
    tables = [_model_table(where, comparison)]
    if any(row.num_seeds > 1 for row in comparison.groups):
        tables.append(_group_table(where, comparison))
    if comparison.pairs:
        tables.append(_pair_table(where, comparison))
    return tables


def _model_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            row.model,
            _interval(row.accuracy, 100, 1),
            percent(row.metrics.majority_rate),
            _interval(row.mcc, 1, 3),
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
            str(row.num_seeds),
            f"{100 * row.accuracy_mean:.2f} ± {100 * row.accuracy_sd:.2f}",
            percent(row.majority_rate),
            f"{row.mcc_mean:.3f} ± {row.mcc_sd:.3f}",
        ]
        for row in comparison.groups
    ]
    return f"{where}: mean ± sd over seeds", ["experiment", "seeds", "accuracy %", "majority %", "MCC"], rows


def _pair_table(where: str, comparison: SplitComparison) -> Table:
    rows = [
        [
            f"{row.first} - {row.second}",
            _interval(row.accuracy, 100, 1, signed=True),
            _interval(row.mcc, 1, 3, signed=True),
            ", ".join(f"{p:.2g}" for p in row.mcnemar_p) or "-",
        ]
        for row in comparison.pairs
    ]
    columns = ["first minus second", "Δ accuracy, points", "Δ MCC", "McNemar p"]
    return f"{where}: differences, paired over sentences", columns, rows


def _interval(interval: Interval, factor: float, digits: int, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (
        f"{factor * x:{sign}.{digits}f}" for x in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"


def _warn_of_collapse(context: Context, found: Sequence[SplitComparison]) -> None:
    for comparison in found:
        for row in comparison.models:
            if row.metrics.collapsed:
                answer = int(np.argmax(row.metrics.predicted_rates))
                context.reporter.warn(
                    f"{row.model} answers class {answer} to all of {comparison.split}: MCC 0, "
                    f"majority rate {percent(row.metrics.majority_rate)} %"
                )


def _markdown(table: Table) -> str:
    title, columns, rows = table
    lines = [f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])
