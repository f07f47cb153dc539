"""What a training command hands to the code that trains: model, examples, objective, identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from colakit.api.session import Session
from colakit.config.settings import TrainingSettings
from colakit.data.batches import Examples
from colakit.inference.classifier import SentenceClassifier
from colakit.training.averaging import StartAverage
from colakit.training.objectives import Objective
from colakit.training.task_data import TaskData


@dataclass
class Job:
    """What one of the training commands wants trained.

    Attributes:
        classifier: its model is trained in place; it is placed on the device already.
        train: with teacher logits, where the objective needs them.
        val: chooses the best moment and the threshold.
        dev: the splits to report, by name.
        heads: the classifier's model with heads that it needs in training alone; None where it needs none.
        max_steps: optimizer steps; None leaves it to the epochs.
        base: where the body is to be written as a base of its own: its average with what it began as.
        loraplus_lr_ratio: LoRA+'s, 1 otherwise.
        frozen_cache_mib: memory for what frozen blocks make of sentences, in MiB.
        sections: settings sections that determine the weights.
        identity: plain data that must agree between a run and its resumption, besides the settings.
        facts: what the summary should also say.
    """

    session: Session
    task: TaskData
    training: TrainingSettings
    classifier: SentenceClassifier
    train: Examples
    val: Examples
    dev: Mapping[str, Examples]
    objective: Objective
    sections: tuple[str, ...]
    identity: Mapping[str, Any]
    loraplus_lr_ratio: float = 1.0
    frozen_cache_mib: int = 0
    heads: nn.Module | None = None
    max_steps: int | None = None
    base: StartAverage | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def learner(self) -> nn.Module:
        """What the optimizer sees."""
        return self.heads if self.heads is not None else self.classifier.model
