"""`baseline`: what a model reaches without pretraining and without word order beyond a few words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from colakit.api.session import Session
from colakit.api.train_scratch import train_scratch
from colakit.errors import ColakitError
from colakit.evaluation.calibration import fit_temperature
from colakit.evaluation.experiments import experiment_key
from colakit.evaluation.metrics import measure
from colakit.inference.baseline import BaselineClassifier
from colakit.models.ngrams import NgramConfig, NgramModel, fit_ngrams
from colakit.storage.output import Resume
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import Summary
from colakit.training.result import print_result, summary_of, write_predictions
from colakit.training.task_data import TaskData


def baseline(
    session: Session, *, resume: Resume = Resume.NEVER, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Train a baseline, write the run folder and return the summary (or the plan of a dry run).

    Args:
        seeds: train one embedding bag for each seed.

    Raises:
        ColakitError: if there are seeds for a model that does not depend on one.
    """
    settings = session.settings
    kind = settings.baseline.kind
    if kind == "bag":
        return train_scratch(_bag(session), resume=resume, seeds=seeds)
    if seeds is not None:
        raise ColakitError(
            f"--seeds with baseline.kind={kind}: the model is the same with every seed",
            hint="Leave --seeds out.",
        )
    task = session.load_task(bases={})
    config = NgramConfig(len(task.corpus.label_names))
    if kind == "tfidf":
        config = replace(config, words=settings.baseline.words, characters=settings.baseline.characters)
    if session.dry_run:
        sizes = ", ".join(f"{size:,} {name}" for name, size in task.sizes().items())
        session.reporter.result(f"would fit {kind} on a CPU; sentences: {sizes}")
        return {"command": session.command, "sentences": task.sizes()}
    origin = {
        "command": session.command,
        "settings": session.portable_settings(),
        "data": task.corpus.fingerprints(),
        "train_fingerprint": task.train.fingerprint(),
    }
    with session.training_run(resume) as run:
        folder = run.open()
        if run.is_finished:
            if folder.read_summary(Summary).experiment != experiment_key(origin):
                raise ColakitError(
                    f"{folder.path}: the run was started differently",
                    hint=f"Resume with its own settings: --config {folder.settings}",
                )
            return run.finished_summary()
        folder.create(session.settings_yaml, session.compute, session.resolved.origins)
        return {**_train(session, config, task, origin, folder), "run": str(folder.path)}


def _train(
    session: Session, config: NgramConfig, task: TaskData, origin: dict[str, Any], folder: RunFolder
) -> dict[str, Any]:
    """Fit a model of n-grams, write and print its result, and return the summary."""
    begin = time.monotonic()
    model, penalty = _fit(config, task, session.settings.baseline.penalties)
    seconds = time.monotonic() - begin
    splits = {"val": task.val, **task.reports}
    logits = {name: model(split.sentences) for name, split in splits.items()}
    temperature = fit_temperature(logits["val"], task.val.require_labels())
    classifier = BaselineClassifier(model, task.corpus.label_names, temperature=temperature, origin=origin)
    decision = (classifier.label_names, classifier.threshold, classifier.temperature)
    measured = write_predictions(folder, splits, logits, *decision)
    path = classifier.save(folder.path)
    summary = {
        "command": session.command,
        "seed": None,
        "model": classifier.name,
        "experiment": experiment_key(origin),
        "labels": list(classifier.label_names),
        "penalty": penalty,
        "threshold": classifier.threshold,
        "temperature": classifier.temperature,
        "splits": summary_of(measured),
        "parameters": {"trainable": model.num_parameters, "total": model.num_parameters},
        "seconds": round(seconds, 2),
        "train_fingerprint": origin["train_fingerprint"],
    }
    folder.write_summary(summary)
    title = classifier.name if penalty is None else f"{classifier.name}, penalty {penalty:g}"
    print_result(title, measured, classifier.label_names, classifier.threshold, session.reporter)
    session.reporter.result(f"{path} ({len(task.train):,} sentences, {seconds:.1f} s of fitting)")
    return summary


def _bag(session: Session) -> Session:
    """Return the session with the settings of an embedding bag that is trained on the labels alone."""
    settings = session.settings
    if settings.student.pooling == "last":
        raise ColakitError(
            "student.pooling=last: a bag has mean, max or attention", hint="--set student.pooling=mean"
        )
    changes = {
        "student": settings.student.model_copy(update={"cell": "bag"}),
        "train_scratch": settings.train_scratch.model_copy(update={"budget": "epochs"}),
    }
    return replace(session, resolved=replace(session.resolved, settings=settings.model_copy(update=changes)))


def _fit(config: NgramConfig, task: TaskData, penalties: Sequence[float]) -> tuple[NgramModel, float | None]:
    """Return the model with the highest MCC on the validation split, and its penalty (None for majority)."""
    models = fit_ngrams(config, task.train.sentences, task.train.require_labels(), penalties)
    logits = [model(task.val.sentences) for model in models]
    scores = [measure(each, task.val.require_labels(), each.argmax(axis=1)).mcc for each in logits]
    best = int(np.argmax(scores))
    return models[best], penalties[best] if config.analyzers() else None
