"""`finetune --folds K`: K runs, each without one fold of train, and their out-of-fold metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from colakit.api.run_set import (
    Environment,
    describe_workers,
    plan_run_set,
    threads_of,
    train_run_set,
    workers,
)
from colakit.api.session import Session
from colakit.data.splits import left_out
from colakit.distillation.teachers import load_teachers
from colakit.errors import ColakitError
from colakit.evaluation.experiments import experiment_key, fold_of
from colakit.evaluation.out_of_fold import FoldModel, combine_folds, fold_tables
from colakit.evaluation.tables import print_tables
from colakit.inference.decisions import probabilities
from colakit.storage.output import Resume
from colakit.storage.run_schemas import ClassifierSummary
from colakit.storage.run_set import RunSet
from colakit.training.run import TrainingRun
from colakit.training.task_data import TaskData
from colakit.training.trainer import Trainer
from colakit.utils.plan import Plan, Stage

MeasureStages = Callable[[], list[Stage]]
TRAINING_FOLDS, LABELLING_TRAIN = "training the folds", "labelling train"


def cross_validate(
    session: Session,
    count: int,
    build_model: Callable[[Session, TaskData], nn.Module],
    make_trainer: Callable[[Session, TaskData, TrainingRun], Trainer],
    *,
    resume: Resume,
) -> dict[str, Any]:
    """Train the unfinished runs of `count` and report all; return the summary (or the plan of a dry run).

    Args:
        build_model: returns the model without weights; finds errors of base and adapter before any training.
        make_trainer: returns the trainer of a run, to measure its stages.
    """
    if (fold := session.settings.finetune.leave_out) is not None:
        raise ColakitError(
            f"--folds with finetune.leave_out={fold}: --folds leaves out each fold once",
            hint="Remove one of them.",
        )
    runs, saved = plan_run_set(session, "folds", range(1, count + 1), resume=resume)
    task = session.load_task()
    model = build_model(session, task)
    sizes = _fold_sizes(task, runs)
    measure_run = _without_first_fold(session, runs).measurable_stages(task, make_trainer)
    if session.dry_run:
        rows = [[fold, str(len(task.train) - size), str(size)] for fold, size in sizes.items()]
        session.reporter.table("Folds", ["left out", "trained on", "sentences of it"], rows)
        environments = workers(session, count)
        session.reporter.result(f"{count} runs, {describe_workers(environments)}; each:")
        measure = (
            None
            if measure_run is None
            else partial(_fold_stages, task, measure_run, environments, runs, count)
        )
        return {**session.plan(task, model, measure), "folds": sizes, "side_by_side": len(environments)}
    plan = Plan([], session.reporter)

    @contextmanager
    def training(num_missing: int) -> Iterator[None]:
        if measure_run is not None and num_missing and not session.reporter.quiet:
            plan.stages = _fold_stages(task, measure_run, workers(session, count), runs, num_missing)
            plan.show(session.reporter.say)
        with plan.stage(TRAINING_FOLDS):
            yield

    def report(runs: RunSet) -> dict[str, Any]:
        with plan.stage(LABELLING_TRAIN):
            return _report(session, task, runs, plan)

    return train_run_set(session, runs, saved, resume=resume, report=report, training=training)


def _without_first_fold(session: Session, runs: RunSet) -> Session:
    """Return the session of the first fold's run."""
    tuning = session.settings.finetune.model_copy(update={"leave_out": runs.fold_spec(runs.values[0])})
    settings = session.settings.model_copy(update={"finetune": tuning})
    return replace(session, resolved=replace(session.resolved, settings=settings))


def _fold_stages(
    task: TaskData,
    measure_run: MeasureStages,
    environments: Sequence[Environment],
    runs: RunSet,
    num_missing: int,
) -> list[Stage]:
    """Return the stages of training `num_missing` folds, from measured seconds of one run."""
    with threads_of(environments[0]):
        stages = measure_run()
    last, seconds = stages[-1], [stage.estimate for stage in stages]
    rounds, num_labelled = -(-num_missing // len(environments)), len(task.train)
    steps = num_missing * sum(stage.steps for stage in stages)
    if None in seconds or last.estimate is None:
        return [Stage(TRAINING_FOLDS, steps=steps), Stage(LABELLING_TRAIN, sentences=num_labelled)]
    each = last.estimate / last.sentences
    return [
        Stage(TRAINING_FOLDS, steps=steps, estimate=rounds * sum(filter(None, seconds))),
        Stage(LABELLING_TRAIN, sentences=num_labelled, estimate=num_labelled * each),
    ]


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


def _report(session: Session, task: TaskData, runs: RunSet, plan: Plan) -> dict[str, Any]:
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
        unseen = teacher.unseen(task.train)
        logits = teacher.logits_of(task.train, unseen)
        labels = teacher.classifier.predict_labels(logits)
        outputs.append(
            FoldModel(
                run.path.name, fold, run.read_summary(ClassifierSummary).model_dump(), unseen, logits, labels
            )
        )
    labels = task.train.require_labels()
    result, predictions, logits = combine_folds(labels, outputs)
    summary = {
        "command": session.command,
        "folds": len(runs.values),
        "experiment": experiment_key(teacher.classifier.origin),
        "seed": session.settings.seed,
        "labels": list(task.corpus.label_names),
        "stages": plan.as_dict(),
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
