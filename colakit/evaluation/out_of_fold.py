"""What the runs of `finetune --folds K` say of train, each sentence judged by the one that has not seen it.

The judge decides at its own threshold, chosen on the held-out slice, which is part of no fold.

Shapes: N sentences of train, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.distillation.teachers import Teacher, load_teacher, logits_of, unseen_by
from colakit.errors import ColakitError
from colakit.evaluation.comparison import experiment_key, fold_of
from colakit.evaluation.metrics import Interval, Metrics, Spread, measure
from colakit.evaluation.tables import Table, interval, show, spread
from colakit.storage.folds import FoldsFolder
from colakit.training.finish import measure_with_intervals
from colakit.training.task_data import TaskData, percent

FIGURES = ("accuracy", "majority_rate", "mcc")
COLUMNS = ("sentences", "accuracy %", "majority %", "MCC")
PARTS = {"val": "the held-out slice", "left_out": "the fold that it left out"}


def report(session: Session, task: TaskData, folds: FoldsFolder) -> dict[str, Any]:
    """Judge every sentence of train out of fold; write, print and return the result.

    Raises:
        ColakitError: if a run left out another fold than its own.
    """
    train, labels = task.train, task.train.require_labels()
    logits = np.zeros((len(train), len(task.corpus.label_names)), dtype=np.float32)
    predictions = np.zeros(len(train), dtype=np.int64)
    runs: list[dict[str, Any]] = []
    experiment = ""
    for number in folds.numbers():
        teacher = _teacher(session, task, folds, number)
        experiment = experiment_key(teacher.classifier.origin)
        unseen = unseen_by(teacher, train)  # (N,)
        logits[unseen] = logits_of(session, teacher, train)[unseen]  # asked of all, as `distill` will
        predictions[unseen] = teacher.classifier.predict_labels(logits[unseen])
        judged = measure(logits[unseen], labels[unseen], predictions[unseen])
        runs.append(_figures_of(folds, number, judged))
    metrics, intervals = measure_with_intervals(labels, logits, predictions)
    summary = {
        "command": session.command,
        "folds": folds.count,
        "experiment": experiment,
        "seed": session.settings.seed,
        "labels": list(task.corpus.label_names),
        "runs": runs,
        **{part: _spreads([run[part] for run in runs]) for part in PARTS},
        "out_of_fold": {**metrics.as_dict(), **intervals},
    }
    folds.shared.write_predictions({"out_of_fold": (labels, predictions)})
    folds.shared.write_summary(summary)
    tables = [_fold_table(summary, part, where) for part, where in PARTS.items()]
    show(session, [*tables, _whole_table(summary)])
    if metrics.collapsed:
        session.reporter.warn("all teachers give one and the same answer to everything they have not seen")
    session.reporter.result(f"{folds.path}: {folds.count} runs, for `colakit distill --teacher`")
    return summary


def _teacher(session: Session, task: TaskData, folds: FoldsFolder, number: int) -> Teacher:
    """Load the model of a fold, and see that it is that fold's."""
    run, wanted = folds.run(number).path, folds.fold_spec(number)
    teacher = load_teacher(session, task, str(run))
    if (found := fold_of(teacher.classifier.origin)) != wanted:
        raise ColakitError(
            f"{run}: left out {f'fold {found}' if found else 'nothing'}; fold {wanted} is wanted here",
            hint=f"Remove it to have it trained anew. {folds.resume_hint()}",
        )
    return teacher


def _figures_of(folds: FoldsFolder, number: int, judged: Metrics) -> dict[str, Any]:
    run = folds.run(number)
    summary = run.read_summary()
    return {
        "run": run.path.name,
        "leave_out": folds.fold_spec(number),
        "threshold": summary["threshold"],
        "seconds": summary["seconds"],
        "val": {key: summary["splits"]["val"][key] for key in ("num_examples", *FIGURES)},
        "left_out": judged.as_dict(),
    }


def _spreads(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return mean and standard deviation over the folds of each figure."""
    return {key: dict(vars(Spread.of([figures[key] for figures in found]))) for key in FIGURES}


def _fold_table(summary: Mapping[str, Any], part: str, where: str) -> Table:
    rows = [
        [
            run["leave_out"],
            str(run[part]["num_examples"]),
            percent(run[part]["accuracy"]),
            percent(run[part]["majority_rate"]),
            f"{run[part]['mcc']:.3f}",
        ]
        for run in summary["runs"]
    ]
    formats = (("accuracy", 100, 2), ("majority_rate", 100, 2), ("mcc", 1, 3))
    spreads = [spread(Spread(**summary[part][key]), factor, digits) for key, factor, digits in formats]
    title = f"{summary['command']}, seed {summary['seed']}: each run on {where}"
    return title, ["fold", *COLUMNS], [*rows, ["mean ± sd", "", *spreads]]


def _whole_table(summary: Mapping[str, Any]) -> Table:
    found = summary["out_of_fold"]
    accuracy, mcc = (Interval(found[key], *found[f"{key}_interval"]) for key in ("accuracy", "mcc"))
    row = [
        str(found["num_examples"]),
        interval(accuracy, 100, 2),
        percent(found["majority_rate"]),
        interval(mcc, 1, 3),
        f"{found['loss']:.3f}",
    ]
    title = "out of fold: every sentence of train, by the run that has not seen it; 95 % intervals"
    return title, [*COLUMNS, "loss"], [row]
