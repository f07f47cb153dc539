"""Trains a classifier: batches of sentences, metrics, best weights on the validation split, result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colakit.config.training import TrainingSettings
from colakit.data.batches import UNLABELLED, Batch, Examples
from colakit.data.corpora import Split
from colakit.data.tokenizer import save_tokenizer
from colakit.data.tokens import Tokens
from colakit.evaluation.calibration import fit_temperature
from colakit.evaluation.experiments import experiment_key
from colakit.evaluation.metrics import (
    STATISTICS,
    accuracy_of_confusion,
    mcc_of_confusion,
    measure,
)
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.decisions import predict_labels
from colakit.inference.forward import compute_logits, compute_states, evaluating
from colakit.models.gpt.model import GPTClassifier, num_frozen_blocks
from colakit.models.parameters import count_parameters
from colakit.storage.gpt2 import write_base
from colakit.storage.model_file import write_companion
from colakit.storage.peft import write_adapter
from colakit.training.averaging import EMA, StartAverage
from colakit.training.epochs import steps, steps_per_epoch
from colakit.training.job import TrainJob
from colakit.training.loop import StepBatch, StepReport
from colakit.training.objectives import CROSS_ENTROPY
from colakit.training.result import choose_threshold, print_result, summary_of, write_predictions
from colakit.training.run import TrainingRun
from colakit.training.trainer import Trainer

MAY_CHANGE = {"log_every", "save_every_steps", "track_dev", "teacher"}
"""Settings that may differ on resume: no influence on the weights, or covered by a fingerprint (teacher)."""


@dataclass(kw_only=True)
class ClassifierJob(TrainJob):
    """Training of a sentence classifier.

    Attributes:
        classifier: its model is `model`, or the part of `model` that stays after training.
        train: with teacher logits if the objective needs them.
        val: chooses the best weights and the threshold.
        dev: the splits to report, by name.
        splits: the sentences of val and dev, by name.
        train_loss: name of the objective, for figures; only `CROSS_ENTROPY` can be compared with val.
        base: weights averaged with the start, if the body is written as a base to `base/`.
        frozen_cache_mib: memory for the output of frozen blocks, in MiB.
    """

    settings: TrainingSettings
    classifier: SentenceClassifier
    train: Examples
    val: Examples
    dev: Mapping[str, Examples]
    splits: Mapping[str, Split]
    train_loss: str = CROSS_ENTROPY
    base: StartAverage | None = None
    frozen_cache_mib: int = 0


class ClassifierTrainer(Trainer):
    """Trains the classifier of a job and keeps the best weights."""

    job: ClassifierJob

    def __init__(self, job: ClassifierJob, run: TrainingRun) -> None:
        super().__init__(job, run)
        self.settings = job.settings
        self.num_labels = len(job.classifier.label_names)
        self.steps_per_epoch = steps_per_epoch(job.train, job.settings.batch_size)
        self.evaluate_every = (
            job.settings.evaluate_every_steps or job.settings.evaluate_every_epochs * self.steps_per_epoch
        )
        self.ema = EMA(self.model, job.settings.ema_decay)
        # (C, C) counts of this process's training predictions since the last evaluation
        self.confusion = torch.zeros(self.num_labels, self.num_labels, dtype=torch.long)

    def prepare(self) -> None:
        """Compute the output of frozen blocks for the train and validation splits once, if memory allows."""
        job, model = self.job, self.model
        if not (frozen := num_frozen_blocks(model)):
            return
        assert isinstance(model, GPTClassifier), "only GPTs have frozen blocks"
        title, mib = f"frozen blocks 0 to {frozen - 1}", self._cache_mib()
        if mib > job.frozen_cache_mib:
            self.reporter.say(
                f"{title}: computed at every step; a cache of {mib:.1f} MiB exceeds finetune.frozen_cache_mib"
            )
            return
        self.reporter.say(f"{title}: computed once, cached in {mib:.1f} MiB")
        with self.reporter.progress(title, len(job.train) + len(job.val)) as bar:
            compute = partial(compute_states, model, compute=self.compute, done=bar.advance)
            job.train = replace(job.train, states=compute(job.train.tokens))
            if self.group.is_main:  # only the main process evaluates
                job.val = replace(job.val, states=compute(job.val.tokens))

    def _cache_mib(self) -> float:
        """Return the size of the output of frozen blocks for the train and validation splits, in MiB."""
        assert isinstance(self.model, GPTClassifier)
        num_tokens = sum(len(part.tokens.ids) for part in (self.job.train, self.job.val))
        return num_tokens * self.model.config.width * 4 / 2**20

    def frozen_sentences(self) -> int:
        """Return the number of sentences for which `prepare` computes the output of frozen blocks."""
        is_cached = num_frozen_blocks(self.model) and self._cache_mib() <= self.job.frozen_cache_mib
        return len(self.job.train) + len(self.job.val) if is_cached else 0

    def with_states(self, batch: Batch) -> Batch:
        """Return the batch with the output of the frozen blocks, as after `prepare`."""
        assert isinstance(self.model, GPTClassifier)
        with evaluating(self.model), self.compute.autocast():
            states = self.model.body.frozen_states(batch.input_ids.to(self.compute.device))
        return replace(batch, states=states.float().cpu().clone())

    def evaluated_sentences(self) -> tuple[int, int]:
        """Return how many sentences are evaluated during training, and how many at its end."""
        num_dev = sum(map(len, self.job.dev.values()))
        each = len(self.job.val) + (num_dev if self.settings.track_dev else 0)
        return -(-self.max_steps // self.evaluate_every) * each, len(self.job.val) + num_dev

    def seconds_per_evaluated_sentence(self, sample: int) -> float:
        """Measure the evaluation of up to `sample` sentences of the validation split."""
        index = np.linspace(0, len(self.job.val) - 1, min(sample, len(self.job.val))).astype(np.int64)
        tokens = Tokens.pack([self.job.val.tokens.sentence(i) for i in index])
        begin = time.monotonic()
        compute_logits(self.job.classifier.model, tokens, self.compute)
        return (time.monotonic() - begin) / len(index)

    def batches(self) -> Iterator[StepBatch]:
        """Yield the input of the steps after `self.step`."""
        return steps(
            self.job.train,
            self.settings,
            seed=self.job.seed,
            start=self.step,
            max_steps=self.max_steps,
            processes=self.group,
        )

    def observe(self, report: StepReport) -> str:
        """Update EMA and confusion counts; return the text after the loss in the progress bar."""
        self.ema.update(report.step)
        for logits, labels in report.predictions:
            labelled = labels != UNLABELLED
            cells = labels[labelled] * self.num_labels + logits[labelled].argmax(dim=1)
            counts = torch.bincount(cells, minlength=self.num_labels**2).cpu()
            self.confusion += counts.view(self.num_labels, self.num_labels)
        text = ""
        if train := _train_metrics(self.confusion):
            text = f", MCC {train['mcc']:.3f}, accuracy {100 * train['accuracy']:.1f} %"
        if (best := self.progress.best) is not None:
            text += f", best val: MCC {best['mcc']:.3f}, accuracy {100 * best['accuracy']:.1f} %"
        return text

    def is_stale(self) -> bool:
        """Return whether `patience` evaluations in a row brought no improvement."""
        patience = self.settings.patience
        return patience is not None and self.progress.stale >= patience

    # -- evaluation

    def is_evaluation_due(self) -> bool:
        """Return whether this step ends with an evaluation."""
        return self.step % self.evaluate_every == 0

    def evaluate(self) -> str:
        """Evaluate on the validation split; keep the weights (or their EMA) if they are the best so far."""
        with self.ema.applied():
            val, dev = self.group.broadcast(self._measure() if self.group.is_main else ({}, {}))
            self.keep_best(val, self._score)
        confusion = self.group.sum(self.confusion.to(self.compute.device)).cpu()
        train = {"loss": self.mean_loss, **_train_metrics(confusion)}
        self.log("evaluation", epoch=self.epoch, train=train, val=val, **({"dev": dev} if dev else {}))
        self.confusion.zero_()
        return (
            f"val: MCC {val['mcc']:.3f}, accuracy {100 * val['accuracy']:.1f} %, "
            f"loss {val['loss']:.3f}, epoch {self.epoch:.2f}"
        )

    def _score(self, val: Mapping[str, Any]) -> tuple[float, float]:
        """Return the sort key of an evaluation; the lower loss breaks ties."""
        if self.settings.metric_for_best_model == "loss":
            return -val["loss"], val["mcc"]
        return val[self.settings.metric_for_best_model], -val["loss"]

    def _measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return metrics of the validation split, and of the dev splits if they are tracked.

        The threshold is the one that the run would choose if it ended now. The validation split is also
        measured at argmax, as train is.
        """
        val_logits = self.logits(self.job.val)
        threshold = self.best_threshold(val_logits)

        def metrics(logits: NDArray[np.float32], data: Examples, threshold: float | None) -> dict[str, Any]:
            return asdict(measure(logits, data.labels, predict_labels(logits, threshold)))

        tracked = self.job.dev if self.settings.track_dev else {}
        dev = {name: metrics(self.logits(data), data, threshold) for name, data in tracked.items()}
        val = metrics(val_logits, self.job.val, threshold)
        argmax = metrics(val_logits, self.job.val, None)
        return {**val, "argmax": {name: argmax[name] for name in STATISTICS}}, dev

    def logits(self, data: Examples) -> NDArray[np.float32]:
        """Return the (N, C) logits of N sentences with the current weights."""
        return compute_logits(self.job.classifier.model, data.tokens, self.compute, states=data.states)

    def best_threshold(self, logits: NDArray[np.float32], temperature: float = 1.0) -> float | None:
        """Return the best threshold for the (N, C) logits of the validation split; None for argmax."""
        return choose_threshold(self.settings.threshold, logits, self.job.val.labels, temperature)

    # -- checkpoints

    def progress_state(self) -> dict[str, Any]:
        """Return `progress`, with the EMA, as plain data and tensors."""
        return {**super().progress_state(), "ema": self.ema.state()}

    def process_state(self) -> Tensor:
        """Return this process's confusion counts."""
        return self.confusion

    def restore_progress(self, progress: dict[str, Any], process: Tensor) -> None:
        """Restore what `progress_state` and `process_state` returned."""
        super().restore_progress(progress, process)
        self.ema.restore(self.progress.ema)
        self.confusion = process

    # -- result

    def finish(self) -> dict[str, Any]:
        """Load the best weights, fit the decision, evaluate dev once, write and print the result."""
        job, classifier = self.job, self.job.classifier
        if self.is_stale():
            self.reporter.say(f"stopped early: no improvement in {self.progress.stale} evaluations")
        best = self.load_best()
        classifier.model.eval()
        logits = {name: self.logits(data) for name, data in {"val": job.val, **job.dev}.items()}
        classifier.temperature = fit_temperature(logits["val"], job.val.labels)
        classifier.threshold = self.best_threshold(logits["val"], classifier.temperature)
        decision = (classifier.label_names, classifier.threshold, classifier.temperature)
        measured = write_predictions(self.folder, job.splits, logits, *decision)
        classifier.origin |= {"steps": self.step, "max_steps": self.max_steps, "examples": self.counted}
        self._write_model()
        summary = self.write_summary(
            "examples",
            model=classifier.name,
            experiment=experiment_key(classifier.origin),
            labels=list(classifier.label_names),
            best=best,
            train_loss=job.train_loss,
            threshold=classifier.threshold,
            temperature=classifier.temperature,
            splits=summary_of(measured),
            parameters=count_parameters(classifier.model).as_dict(),
        )
        title = f"{job.command}, seed {job.seed}, after {best['epoch']:.2f} epochs"
        print_result(title, measured, classifier.label_names, classifier.threshold, self.reporter)
        self.reporter.result(
            f"{self.folder.checkpoint} ({summary['steps']:,} steps, {summary['examples']:,} sentences, "
            f"{summary['seconds']:.0f} s of training)"
        )
        return summary

    def _write_model(self) -> None:
        classifier = self.job.classifier
        if self.job.base is not None:
            assert isinstance(classifier.model, GPTClassifier)
            with self.job.base.applied():
                write_base(classifier.model.language_model(), classifier.tokenizer, self.folder.base)
        classifier.save(self.folder.checkpoint)
        if classifier.lora is not None:
            base = classifier.origin["base"]
            write_adapter(classifier.model, self.folder.adapter, classifier.lora, base=base)
            write_companion(self.folder.adapter, classifier.companion())
            assert isinstance(classifier.model, GPTClassifier)
            positions = classifier.model.config.num_positions
            save_tokenizer(classifier.tokenizer, self.folder.adapter, max_tokens=positions, boundaries=True)
            if classifier.tokenizer.suffix:
                self.reporter.warn(
                    f"{self.folder.adapter}: with add_eos, transformers must pad with another token than "
                    "eos_token, or its head reads the token before the end of the sentence"
                )


def _train_metrics(confusion: Tensor) -> dict[str, float]:
    """Return accuracy and MCC of (C, C) counts; empty if all are 0 (a transfer set has no labels)."""
    counts = confusion.numpy()
    if not counts.any():
        return {}
    return {"accuracy": float(accuracy_of_confusion(counts)), "mcc": float(mcc_of_confusion(counts))}
