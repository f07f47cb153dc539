"""`finetune --folds K`: K runs, each without one fold of train, and their out-of-fold metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from colakit.api.run_set import describe_workers, plan_run_set, train_run_set, workers
from colakit.api.session import Session
from colakit.data.splits import left_out
from colakit.distillation.teachers import load_teachers
from colakit.errors import ColakitError
from colakit.evaluation.comparison import experiment_key, fold_of
from colakit.evaluation.out_of_fold import FoldModel, combine_folds, fold_tables
from colakit.evaluation.tables import print_tables
from colakit.inference.decisions import probabilities
from colakit.storage.output import Resume
from colakit.storage.run_set import RunSet
from colakit.training.task_data import TaskData


def cross_validate(
    session: Session, count: int, build_model: Callable[[Session, TaskData], nn.Module], *, resume: Resume
) -> dict[str, Any]:
    """Train the unfinished runs of `count` and report all; return the summary (or the plan of a dry run).

    Args:
        build_model: returns the model without weights; finds errors of base and adapter before any training.
    """
    if (fold := session.settings.finetune.leave_out) is not None:
        raise ColakitError(
            f"--folds with finetune.leave_out={fold}: --folds leaves out each fold once",
            hint="Remove one of them.",
        )
    runs = plan_run_set(session, "folds", range(1, count + 1), resume=resume)
    task = session.load_task()
    model = build_model(session, task)
    sizes = _fold_sizes(task, runs)
    if session.dry_run:
        rows = [[fold, str(len(task.train) - size), str(size)] for fold, size in sizes.items()]
        session.reporter.table("Folds", ["left out", "trained on", "sentences of it"], rows)
        environments = workers(session, count)
        session.reporter.result(f"{count} runs, {describe_workers(environments)}; each:")
        return {**session.plan(task, model), "folds": sizes, "side_by_side": len(environments)}
    return train_run_set(session, runs, resume=resume, report=lambda runs: _report(session, task, runs))


def _fold_sizes(task: TaskData, runs: RunSet) -> dict[str, int]:
    """Return the number of sentences of train by fold `i/k`."""
    folds = [runs.fold_spec(number) for number in runs.values]
    sizes = {fold: int(left_out(task.train.sentences, fold).sum()) for fold in folds}
    if empty := [fold for fold, size in sizes.items() if not size]:
        raise ColakitError(
            f"{runs.flag()}: fold {empty[0]} is empty ({len(task.train)} sentences of train)",
            hint="Use fewer folds.",
        )
    return sizes


def _report(session: Session, task: TaskData, runs: RunSet) -> dict[str, Any]:
    """Write, print and return the out-of-fold metrics.

    Raises:
        ColakitError: if a run left out another fold than its own.
    """
    outputs = []
    for number in runs.values:  # one model in memory at a time
        run, fold = runs.run(number), runs.fold_spec(number)
        (teacher,) = load_teachers(
            [str(run.path)],
            task.corpus.label_names,
            base=session.settings.base if session.resolved.was_typed("base") else None,
            compute=session.compute,
            arrays=session.arrays,
            reporter=session.reporter,
        )
        if (trained_without := fold_of(teacher.classifier.origin)) != fold:
            raise ColakitError(
                f"{run.path}: left out {f'fold {trained_without}' if trained_without else 'no fold'}; "
                f"it must leave out fold {fold}",
                hint=f"Delete it to train it again. Continue: {runs.resume_command()}",
            )
        logits = teacher.logits(task.train)  # of all of train: `distill` needs them later
        labels = teacher.classifier.predict_labels(logits)
        unseen = teacher.unseen(task.train)
        outputs.append(FoldModel(run.path.name, fold, run.read_summary(), unseen, logits, labels))
    labels = task.train.require_labels()
    result, predictions, logits = combine_folds(labels, outputs)
    summary = {
        "command": session.command,
        "folds": len(runs.values),
        "experiment": experiment_key(teacher.classifier.origin),
        "seed": session.settings.seed,
        "labels": list(task.corpus.label_names),
        **result,
    }
    runs.shared.write_predictions(
        task.corpus.label_names, {"out_of_fold": (task.train, predictions, probabilities(logits))}
    )
    runs.shared.write_summary(summary)
    print_tables(fold_tables(summary), session.reporter)
    if result["out_of_fold"]["collapsed"]:
        session.reporter.warn("all models predict one class for all sentences they were not trained on")
    session.reporter.result(f"{runs.path}: {len(runs.values)} runs, usable with `colakit distill --teacher`")
    return summary
