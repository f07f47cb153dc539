"""`colakit evaluate`: any number of models on any splits, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.commands.recorded import load_corpus_of
from colakit.commands.tables import Table, interval, keep, show
from colakit.commands.task import encode, percent
from colakit.context import Context
from colakit.data.corpora import Corpus, Split
from colakit.engine.classifier import CHECKPOINT_NAME, SentenceClassifier, load_classifier
from colakit.engine.comparison import (
    Answers,
    Entrant,
    SplitComparison,
    compare,
    distinct_names,
    experiment_key,
    group_names,
)
from colakit.engine.metrics import Labels
from colakit.errors import ColakitError


def run(context: Context, *, models: list[str]) -> dict[str, Any]:
    """Print the comparison; with `--out`, also write evaluation.json and evaluation.md there."""
    context.check_out()
    corpus = load_corpus_of(context, models)
    names = context.settings.evaluate.splits or _default_splits(corpus)
    for name in names:
        corpus.split(name).require_labels()
    if context.dry_run:
        return _plan(context, models, names)
    corpus, answers = _ask_all(context, models, corpus, names)
    found = [compare(name, corpus.split(name).require_labels(), answers[name]) for name in names]
    tables = [table for comparison in found for table in _tables(comparison)]
    show(context, tables)
    _warn_of_collapse(context, found)
    result = {"corpus": corpus.name, "splits": {comparison.split: asdict(comparison) for comparison in found}}
    keep(context, "evaluation", result, tables)
    return result


def _plan(context: Context, models: Sequence[str], splits: Sequence[str]) -> dict[str, Any]:
    for model in models:
        if not Path(model).exists():
            raise ColakitError(
                f"{model}: not there", hint="Give a run folder, a ckpt.pt or an adapter folder."
            )
    context.reporter.result(f"would measure {', '.join(models)} on {', '.join(splits)} ({context.compute})")
    return {"models": list(models), "splits": list(splits), "compute": str(context.compute)}


def _default_splits(corpus: Corpus) -> list[str]:
    names = corpus.report_splits()
    return [*names, "dev"] if sum(name.endswith("_dev") for name in names) > 1 else names


def _ask_all(
    context: Context, models: Sequence[str], corpus: Corpus, splits: Sequence[str]
) -> tuple[Corpus, dict[str, list[Answers]]]:
    """Return the corpus, labelled as the models label, and split name -> every model's answers.

    One model is loaded at a time.
    """
    entrants: list[Entrant] = []
    logits: list[dict[str, tuple[NDArray[np.float32], Labels]]] = []
    base = context.settings.base if context.resolved.was_typed("base") else None
    names = distinct_names([_folder(model) for model in models])
    with context.reporter.progress("evaluate", len(models)) as bar:
        for path, name in zip(models, names, strict=True):
            classifier = load_classifier(path, base=base)
            if not entrants:  # data may lack a class that the model knows
                corpus = corpus.relabelled(classifier.label_names)
            classifier.require_labels(corpus.label_names, path)
            context.compute.place(classifier.model.requires_grad_(False))
            known = classifier.origin.get("settings") is not None
            key = experiment_key(classifier.origin) if known else str(Path(path).resolve())
            entrants.append(Entrant(name, classifier.name, key, classifier.origin.get("seed")))
            logits.append({split: _ask(context, classifier, corpus.split(split), name) for split in splits})
            bar.advance(note=name)
    groups = group_names(entrants)
    answers = {
        split: [
            Answers(entrant.model, group, entrant.seed, *found[split])
            for entrant, group, found in zip(entrants, groups, logits, strict=True)
        ]
        for split in splits
    }
    return corpus, answers


def _ask(
    context: Context, classifier: SentenceClassifier, split: Split, name: str
) -> tuple[NDArray[np.float32], Labels]:
    """Return a model's logits and predictions for a split."""
    tokens = encode(context, classifier, split, f"{name}, ")
    logits = classifier.logits(tokens, context.compute, context.settings.evaluate.batch_size)
    return logits, classifier.decide(logits)


def _folder(model: str) -> Path:
    """A run is called by its folder, whether that or the file in it was given."""
    path = Path(model)
    return path.parent if path.name == CHECKPOINT_NAME and path.parent.name else path


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
            str(row.num_seeds),
            percent(row.accuracy_mean)
            + ("" if row.accuracy_sd is None else f" ± {percent(row.accuracy_sd)}"),
            percent(row.majority_rate),
            f"{row.mcc_mean:.3f}" + ("" if row.mcc_sd is None else f" ± {row.mcc_sd:.3f}"),
        ]
        for row in comparison.groups
    ]
    return f"{where}: mean ± sd over seeds", ["experiment", "seeds", "accuracy %", "majority %", "MCC"], rows


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


def _warn_of_collapse(context: Context, found: Sequence[SplitComparison]) -> None:
    for comparison in found:
        for row in comparison.models:
            if row.metrics.collapsed:
                answer = int(np.argmax(row.metrics.predicted_rates))
                context.reporter.warn(
                    f"{row.model} answers class {answer} to all of {comparison.split}: MCC 0, "
                    f"majority rate {percent(row.metrics.majority_rate)} %"
                )
