"""Training a classifier: batches of sentences, live figures, and the best moment on the held-out slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colakit.data.batches import UNLABELLED, Examples
from colakit.evaluation.metrics import accuracy_of_confusion, best_threshold, mcc_of_confusion, measure
from colakit.inference.decisions import predict_labels, probabilities
from colakit.inference.forward import compute_logits, compute_states
from colakit.models.gpt.model import GPTClassifier, num_frozen_blocks
from colakit.runtime.distributed import Processes
from colakit.storage.run_folder import RunFolder
from colakit.training.averaging import EMA
from colakit.training.epochs import steps, steps_an_epoch
from colakit.training.job import Job
from colakit.training.loop import StepBatch, StepReport
from colakit.training.objectives import classification
from colakit.training.optimizers import tuning_optimizer
from colakit.training.trainer import Lesson, Trainer, settings_identity

FREE_TO_CHANGE = {"log_every", "save_every_steps", "track_dev", "teacher"}
"""Settings that may differ on resume: they leave the weights alone, or have a fingerprint (teacher)."""


@dataclass
class Progress:
    """Where a run stands; plain data and tensors, so that it can be saved and restored.

    Attributes:
        loss_sum, count: of the sentences since the last evaluation.
        best: held-out record of the best evaluation, with its step.
        best_tensors: the trainable tensors of that moment, on the CPU.
        stale: evaluations since the best one.
        average: of the weights, on the CPU, where one is kept.
    """

    loss_sum: float = 0.0
    count: int = 0
    best: dict[str, Any] | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)


class ClassifierTrainer(Trainer):
    """Trains a job's classifier; the best moment stays in `progress`."""

    def __init__(self, job: Job, run: RunFolder, group: Processes) -> None:
        self.job = job
        self.num_labels = len(job.classifier.label_names)
        self.steps_per_epoch = steps_an_epoch(job.train, job.training.batch_size)
        super().__init__(job.session, self._lesson(job), run, group)
        self.evaluate_every = (
            job.training.evaluate_every_steps or job.training.evaluate_every_epochs * self.steps_per_epoch
        )
        self.progress = Progress()
        decay = job.training.ema_decay
        self.average = EMA(self.model, decay) if decay is not None else None
        # (C, C) counts of this process's training predictions since the last evaluation
        self.confusion = torch.zeros(self.num_labels, self.num_labels, dtype=torch.long)

    def _lesson(self, job: Job) -> Lesson:
        training, session = job.training, job.session
        return Lesson(
            model=job.learner,
            objective=job.objective,
            optimizer=tuning_optimizer(
                job.learner,
                lr=training.lr,
                weight_decay=training.weight_decay,
                loraplus_lr_ratio=job.loraplus_lr_ratio,
            ),
            training=training,
            max_steps=job.max_steps or training.epochs * self.steps_per_epoch,
            identity={
                **settings_identity(session.settings, job.sections, FREE_TO_CHANGE),
                "max_tokens": job.classifier.max_tokens,
                **job.identity,
            },
            widest=_widest_recorded(job),
        )

    def train(self) -> None:
        """Train until the last step, an early stop or a signal."""
        super().train()
        if self.is_stale():
            self.session.reporter.say(
                f"no better evaluation in the last {self.progress.stale}; stopped early"
            )

    def prepare(self) -> None:
        """Compute what frozen blocks make of train and the held-out slice, where there is room to keep it."""
        job, model = self.job, self.job.learner
        if not (frozen := num_frozen_blocks(model)):
            return
        assert isinstance(model, GPTClassifier), "no student's body is a GPT"
        parts = (job.train, job.val)
        mib = sum(len(part.tokens.ids) for part in parts) * model.config.width * 4 / 2**20
        which, size = f"blocks below {frozen} learn nothing", f"{mib:.1f} MiB"
        if mib > job.frozen_cache_mib:
            self.session.reporter.say(
                f"{which}; they are computed at every step: {size} are more than finetune.frozen_cache_mib"
            )
            return
        self.session.reporter.say(f"{which}; they are computed once, {size} are kept")
        with self.session.reporter.progress(which, sum(map(len, parts))) as bar:
            compute = partial(compute_states, model, compute=self.compute, done=bar.advance)
            job.train = replace(job.train, states=compute(job.train.tokens))
            if self.group.is_main:  # which alone evaluates
                job.val = replace(job.val, states=compute(job.val.tokens))

    def batches(self) -> Iterator[StepBatch]:
        """Return the steps of the epochs, from this one on."""
        training = self.job.training
        return steps(
            self.job.train,
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            seed=self.session.settings.seed,
            start=self.step,
            max_steps=self.max_steps,
            processes=self.group,
        )

    def observe(self, report: StepReport) -> str:
        """Count losses and predictions."""
        progress = self.progress
        if self.average is not None:
            self.average.update(report.step)
        progress.loss_sum += report.loss * report.count
        progress.count += report.count
        for logits, labels in report.predictions:
            labelled = labels != UNLABELLED
            cells = labels[labelled] * self.num_labels + logits[labelled].argmax(dim=1)
            counts = torch.bincount(cells, minlength=self.num_labels**2).cpu()
            self.confusion += counts.view(self.num_labels, self.num_labels)
        return self._live_line(report.epoch)

    def _live_line(self, epoch: int) -> str:
        """Training figures since the last evaluation, and the best evaluation so far."""
        progress = self.progress
        counts = self.confusion.numpy()
        line = f"epoch {epoch + 1}: loss {progress.loss_sum / progress.count:.3f}"
        if counts.any():  # a transfer set has no labels
            line += f", accuracy {100 * accuracy_of_confusion(counts):.1f} %"
            line += f", MCC {mcc_of_confusion(counts):.3f}"
        if progress.best is None:
            return line
        best = progress.best
        return f"{line} | best held out: accuracy {100 * best['accuracy']:.1f} %, MCC {best['mcc']:.3f}"

    def is_stale(self) -> bool:
        """Whether patience is at its end."""
        patience = self.job.training.patience
        return patience is not None and self.progress.stale >= patience

    # -- evaluation

    def is_evaluation_due(self) -> bool:
        """Whether this step ends with an evaluation."""
        return self.step % self.evaluate_every == 0

    def evaluate(self) -> str:
        """Measure the held-out slice, and keep the weights (or their average) if it is the best yet."""
        with self.average.in_place() if self.average is not None else nullcontext():
            return self._evaluate()

    def _evaluate(self) -> str:
        progress = self.progress
        held_out, dev = self.group.broadcast(self._measure_all() if self.group.is_main else ({}, {}))
        counts = self.group.sum(self.confusion.to(self.compute.device)).cpu().numpy()
        epoch = self.step / self.steps_per_epoch
        train = {"loss": progress.loss_sum / progress.count}
        if counts.any():
            train["accuracy"] = float(accuracy_of_confusion(counts))
            train["mcc"] = float(mcc_of_confusion(counts))
        self.log("evaluation", epoch=epoch, train=train, val=held_out, **({"dev": dev} if dev else {}))
        progress.stale += 1
        if progress.best is None or self._key(held_out) > self._key(progress.best):
            progress.best = {**held_out, "step": self.step, "epoch": epoch}
            progress.best_tensors = self.trainable()
            progress.stale = 0
        progress.loss_sum, progress.count = 0.0, 0
        self.confusion.zero_()
        return (
            f"epoch {epoch:.2f} held-out loss {held_out['loss']:.3f} "
            f"accuracy {100 * held_out['accuracy']:.1f} % MCC {held_out['mcc']:.3f}"
        )

    def _key(self, held_out: Mapping[str, Any]) -> tuple[float, float]:
        """What makes an evaluation better; the lower loss breaks ties."""
        metric_for_best_model = self.job.training.metric_for_best_model
        if metric_for_best_model == "loss":
            return -held_out["loss"], held_out["mcc"]
        return held_out[metric_for_best_model], -held_out["loss"]

    def _measure_all(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return figures of the held-out slice, and of the dev splits where they are tracked.

        The threshold is the one that the run would end with now, so that what is best here is best there.
        """
        held_out = self.logits(self.job.val)
        threshold = self.best_threshold(held_out)

        def figures(logits: NDArray[np.float32], data: Examples) -> dict[str, Any]:
            return asdict(measure(logits, data.labels, predict_labels(logits, threshold)))

        tracked = self.job.dev if self.job.training.track_dev else {}
        dev = {name: figures(self.logits(data), data) for name, data in tracked.items()}
        return figures(held_out, self.job.val), dev

    def logits(self, data: Examples) -> NDArray[np.float32]:
        """Return the (N, C) logits of N sentences, by the weights as they are now."""
        model = self.job.classifier.model
        return compute_logits(model, data.tokens, self.compute, states=data.states)

    def best_threshold(self, logits: NDArray[np.float32]) -> float | None:
        """Return the threshold that is best for the held-out slice's (N, C) logits, if there is one."""
        if self.job.training.threshold == "argmax" or logits.shape[1] != 2:
            return None
        return best_threshold(probabilities(logits)[:, 1], self.job.val.labels)

    # -- stopping and resuming

    def progress_state(self) -> dict[str, Any]:
        """Return `progress` as plain data and tensors."""
        if self.average is not None:
            self.progress.average = self.average.state()
        return vars(self.progress)

    def process_state(self) -> Tensor:
        """Return this process's confusion counts."""
        return self.confusion

    def restore_progress(self, progress: dict[str, Any], process: Tensor) -> None:
        """Go back to what the two methods above returned."""
        self.progress = Progress(**progress)
        if self.average is not None:
            self.average.restore(self.progress.average)
        self.confusion = process


def _widest_recorded(job: Job) -> int | None:
    """Return `Lesson.widest`: the other objectives wait for the device, or change as training goes on."""
    if job.objective is not classification or not isinstance(job.learner, GPTClassifier):
        return None
    return job.learner.config.num_positions
