"""The end of a run: the threshold, the figures, and what the folder keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.evaluation.comparison import experiment_key
from colakit.evaluation.metrics import Labels, Metrics, bootstrap, measure
from colakit.inference.decisions import predict_labels
from colakit.models.gpt.model import GPTClassifier
from colakit.models.parameters import count_parameters
from colakit.storage.gpt2 import base_address, write_base
from colakit.storage.peft import write_adapter
from colakit.storage.run_folder import RunFolder
from colakit.training.classifier_trainer import ClassifierTrainer
from colakit.training.job import Job
from colakit.training.task_data import metrics_row


def report(job: Job, run: RunFolder, fit: ClassifierTrainer) -> dict[str, Any]:
    """Take the best moment, choose the threshold, measure the dev splits once, write and print the result."""
    best = fit.progress.best
    assert best is not None, "the last step is always evaluated"
    fit.load_trainable(fit.progress.best_tensors)
    job.classifier.model.eval()
    parts = {"val": job.val, **job.dev}
    logits = {name: fit.logits(data) for name, data in parts.items()}
    job.classifier.threshold = fit.best_threshold(logits["val"])
    predictions = {
        name: (found, predict_labels(found, job.classifier.threshold)) for name, found in logits.items()
    }
    measured = {name: measure_with_intervals(data.labels, *predictions[name]) for name, data in parts.items()}
    summary = {
        "command": job.session.command,
        "model": job.classifier.name,
        "experiment": experiment_key(job.classifier.origin),
        "seed": job.session.settings.seed,
        "labels": list(job.classifier.label_names),
        "best": best,
        "threshold": job.classifier.threshold,
        "splits": {
            name: {**metrics.as_dict(), **intervals} for name, (metrics, intervals) in measured.items()
        },
        "parameters": count_parameters(job.classifier.model).as_dict(),
        "steps": fit.step,
        "seconds": round(fit.seconds, 2),
        "examples_per_second": round(fit.counted_per_second, 1),
        "compute": str(fit.compute),
        **job.facts,
    }
    run.write_predictions({name: (parts[name].labels, found) for name, (_, found) in predictions.items()})
    if job.base is not None:
        assert isinstance(job.classifier.model, GPTClassifier)
        with job.base.in_place():
            write_base(job.classifier.model.transformer, job.classifier.tokenizer, run.base)
    _write(job, run, summary)  # whose last file tells that the run is finished
    _show(job, run, summary, {name: metrics for name, (metrics, _) in measured.items()})
    return summary


def measure_with_intervals(
    labels: Labels, logits: NDArray[np.float32], predictions: Labels
) -> tuple[Metrics, dict[str, list[float]]]:
    """Return the figures of N sentences, and the ends of their 95 % intervals, named `…_interval`.

    Args:
        labels: (N,).
        logits: (N, C).
        predictions: (N,).
    """
    intervals = {}
    for name in ("accuracy", "mcc"):
        interval = bootstrap(name, labels, [predictions], logits.shape[1])
        intervals[f"{name}_interval"] = [interval.low, interval.high]
    return measure(logits, labels, predictions), intervals


def _write(job: Job, run: RunFolder, summary: dict[str, Any]) -> None:
    classifier = job.classifier
    classifier.save(run.checkpoint)
    if classifier.lora is not None:
        write_adapter(
            classifier.model,
            run.adapter,
            classifier.lora,
            base=base_address(classifier.origin["base"]),
        )
        run.write_companion(classifier.companion())
    run.write_summary(summary)


def _show(job: Job, run: RunFolder, summary: dict[str, Any], measured: Mapping[str, Metrics]) -> None:
    reporter = job.session.reporter
    columns = ["split", "sentences", "accuracy %", "majority %", "MCC", "loss"]
    title = f"{summary['command']}, seed {summary['seed']}, after {summary['best']['epoch']:.2f} epochs"
    if summary["threshold"] is not None:
        title += f", threshold {summary['threshold']:.3f} chosen on val"
    reporter.table(title, columns, [metrics_row(name, metrics) for name, metrics in measured.items()])
    for name, metrics in measured.items():
        if metrics.collapsed:
            answer = summary["labels"][int(np.argmax(metrics.predicted_rates))]
            reporter.warn(
                f"{name}: the model answers {answer!r} to everything: MCC 0, "
                f"accuracy is the rate of that label (majority rate {100 * metrics.majority_rate:.2f} %)"
            )
    reporter.result(f"{run.checkpoint} ({summary['seconds']:.0f} s of training)")
