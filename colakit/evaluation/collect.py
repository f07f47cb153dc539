"""Predictions of many models on many splits, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from colakit.data.corpora import Corpus
from colakit.evaluation.budget import training_facts
from colakit.evaluation.comparison import ModelPredictions
from colakit.evaluation.experiments import (
    ModelInfo,
    experiment_key,
    fold_of,
    group_names,
    named_settings,
    teachers_of,
)
from colakit.evaluation.metrics import indices_by_value
from colakit.evaluation.teacher_agreement import ensemble_predictions, match_teachers
from colakit.inference.baseline import BaselineClassifier, is_baseline, load_baseline
from colakit.inference.classifier import SentenceClassifier, encode_split, load_classifier
from colakit.inference.decisions import predict_labels, raw_threshold, require_labels
from colakit.inference.model_names import distinct_names, run_folder
from colakit.models.parameters import count_parameters
from colakit.runtime.device import Compute
from colakit.utils.array_cache import ArrayCache
from colakit.utils.console import Reporter


@dataclass(frozen=True)
class EvaluationInputs:
    """Predictions of all models, in the order given."""

    corpus: Corpus  # with the models' label names
    models: list[ModelInfo]
    groups: list[str]  # name of the experiment of each model
    predictions: dict[str, list[ModelPredictions]]  # split name -> one per model


def collect_predictions(
    paths: Sequence[str],
    corpus: Corpus,
    splits: Sequence[str],
    *,
    compute: Compute,
    batch_size: int,
    arrays: ArrayCache,
    reporter: Reporter,
    base: str | None = None,
) -> EvaluationInputs:
    """Return the predictions of the models at `paths`; `base` replaces the one that adapters record.

    Students whose teachers are not among the models are named in a note.
    """
    models: list[ModelInfo] = []
    outputs = []
    names = distinct_names([run_folder(path) for path in paths])
    with reporter.progress("evaluate", len(paths)) as bar:
        for path, name in zip(paths, names, strict=True):
            classifier = load_baseline(path) if is_baseline(path) else load_classifier(path, base=base)
            if not models:  # the data may lack a class that the model has
                corpus = corpus.relabelled(classifier.label_names)
            require_labels(classifier.label_names, corpus.label_names, path, reporter)
            models.append(_model_info(classifier, name))  # before `place`, which may round weights
            if isinstance(classifier, SentenceClassifier):
                compute.place(classifier.model.requires_grad_(False))
            output = {}
            for split in splits:
                if isinstance(classifier, BaselineClassifier):
                    logits = classifier.logits(corpus.split(split).sentences)
                else:
                    tokens = encode_split(classifier, corpus.split(split), arrays, reporter, f"{name}, ")
                    logits = classifier.logits(tokens, compute, batch_size)
                output[split] = logits, predict_labels(logits, classifier.threshold, classifier.temperature)
            outputs.append((classifier.temperature, output))
            bar.advance(note=name)
    matched = match_teachers(models)
    if missing := [model.name for i, model in enumerate(models) if model.teachers and i not in matched]:
        reporter.say(
            f"teachers of {', '.join(missing)} are not among the models; name them too to measure agreement"
        )
    groups = group_names(models)
    predictions = {
        split: [
            ModelPredictions(model.name, group, model.seed, *output[split], model.fold, temperature)
            for model, group, (temperature, output) in zip(models, groups, outputs, strict=True)
        ]
        for split in splits
    }
    return EvaluationInputs(corpus, models, groups, predictions)


def with_ensembles(inputs: EvaluationInputs) -> EvaluationInputs:
    """Return the inputs with one more model for each experiment of several: the mean of their logits.

    Its predictions are those of `ensemble_predictions`. It counts the parameters of all its models.
    """
    models, groups = list(inputs.models), list(inputs.groups)
    predictions = {split: list(rows) for split, rows in inputs.predictions.items()}
    for group, indices in indices_by_value(inputs.groups).items():
        if len(indices) < 2:
            continue
        members = [inputs.models[index] for index in indices]
        name = f"{group}, ensemble of {len(members)}"
        models.append(
            ModelInfo(
                name=name,
                kind="ensemble",
                experiment=name,
                seed=None,
                num_parameters=sum(member.num_parameters for member in members),
            )
        )
        groups.append(name)
        for split, rows in inputs.predictions.items():
            outputs = [rows[index] for index in indices]
            labels = ensemble_predictions(outputs, [member.threshold for member in members])
            logits = np.mean([output.logits for output in outputs], axis=0)
            predictions[split].append(ModelPredictions(name, name, None, logits, labels))
    return replace(inputs, models=models, groups=groups, predictions=predictions)


def _model_info(classifier: SentenceClassifier | BaselineClassifier, name: str) -> ModelInfo:
    origin = classifier.origin
    fingerprint = classifier.fingerprint()
    if isinstance(classifier, BaselineClassifier):
        num_parameters = classifier.model.num_parameters
    else:
        num_parameters = count_parameters(classifier.model).total
    return ModelInfo(
        name=name,
        kind=classifier.name,
        experiment=fingerprint if origin.get("settings") is None else experiment_key(origin),
        seed=origin.get("seed"),
        fold=fold_of(origin),
        fingerprint=fingerprint,
        teachers=tuple(str(teacher.get("fingerprint")) for teacher in teachers_of(origin)),
        num_parameters=num_parameters,
        threshold=raw_threshold(classifier.threshold, classifier.temperature),
        settings=named_settings(origin),
        facts=training_facts(origin),
    )
