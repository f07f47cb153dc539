"""The stages of `colakit demo`, and its result in one table and a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colakit.api.distill import distillation_stages, tuned_sampler
from colakit.api.finetune import build_model, classifier_job
from colakit.api.session import Session
from colakit.api.train_scratch import control_trainer
from colakit.distillation.teachers import Teacher
from colakit.evaluation.metrics import Interval
from colakit.evaluation.tables import format_interval
from colakit.training.classifier_trainer import ClassifierTrainer
from colakit.training.task_data import TaskData
from colakit.utils.console import Reporter, SilentReporter
from colakit.utils.plan import Stage


def plan_demo(session: Session) -> dict[str, Any]:
    """Print the stages of all three trainings with their measured time, and return the plan."""
    task = session.load_task()
    local = session.with_local_base()
    stages = None if local is None else lambda: _stages(local, task)
    return session.plan(task, build_model(session, task), stages)


def _stages(session: Session, task: TaskData) -> list[Stage]:
    """Return the stages of each training; the teacher of `distill` is the model before its training."""
    quiet = replace(session, reporter=SilentReporter())
    job = classifier_job(quiet, task)
    classifier = job.classifier
    teacher = Teacher(
        "finetune", classifier, classifier.fingerprint(), quiet.compute, quiet.arrays, quiet.reporter
    )
    sampler = None
    if quiet.settings.transfer.needs_sampler:
        sampler = tuned_sampler(quiet, task, quiet.settings.base)
    stages = {
        "finetune": quiet.trainer_stages(lambda run: ClassifierTrainer(job, run)),
        "distill": distillation_stages(quiet, task, [teacher], sampler),
        "train-scratch": quiet.trainer_stages(lambda run: control_trainer(quiet, task, run)),
    }
    return [replace(each, name=f"{run}: {each.name}") for run, rows in stages.items() for each in rows]


def print_demo_result(runs: Sequence[Path], results: Mapping[str, Any], reporter: Reporter) -> None:
    """Print the metrics of every run, and whether the student is ahead of the control and of n-grams.

    Args:
        runs: folders of the teacher, the student, the control and the baseline.
        results: of `evaluate` on these runs.
    """
    splits = {name: split for name, split in results["splits"].items() if name != "dev"}
    columns = [f"{name} {metric}" for name in splits for metric in ("accuracy %", "MCC")]
    metrics = {name: [model["metrics"] for model in split["models"]] for name, split in splits.items()}
    rows = [
        [
            "majority label",
            *(x for m in metrics.values() for x in (f"{100 * m[0]['majority_rate']:.1f}", "0")),
        ]
    ]
    for index, run in enumerate(runs):
        measured = [rows[index] for rows in metrics.values()]
        cells = [(f"{100 * each['accuracy']:.1f}", f"{each['mcc']:.3f}") for each in measured]
        rows.append([run.name, *itertools.chain(*cells)])
    reporter.table("Result", ["run", *columns], rows)
    models = next(iter(splits.values()))["models"]
    student, *others = (model["group"] for model in models[1:])  # the teacher is the first
    for name, split in splits.items():
        pairs = {(row["first"], row["second"]): Interval(**row["mcc"]) for row in split["pairs"]}
        for other, group in zip(("control", "n-grams"), others, strict=True):
            mcc = pairs[student, group]
            verdict = "includes 0: no difference is shown" if mcc.low <= 0 <= mcc.high else "excludes 0"
            reporter.result(
                f"{name}: distilled minus {other}, ΔMCC {format_interval(mcc, 1, 3, signed=True)}; "
                f"the interval {verdict}"
            )
    for name, rows_of_split in metrics.items():
        for run, each in zip(runs, rows_of_split, strict=True):
            if each["accuracy"] < each["majority_rate"]:
                reporter.warn(
                    f"{name}: {run.name} is less accurate than always predicting the majority label"
                )
