"""The content of a run folder's `summary.json`, `metrics.jsonl` and `predictions.json`, as read back."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel, field_validator, model_validator

from colakit.utils.documents import Document

MAX_LABELS = 2**16
MAX_SPLITS = 64

Fraction = Annotated[float, Field(ge=0, le=1)]
Mcc = Annotated[float, Field(ge=-1, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e9)]  # nats, epochs, seconds
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fold = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$")]
Labels = Annotated[
    list[Annotated[int, Field(ge=0, lt=MAX_LABELS)]], Field(min_length=1, max_length=2**22, fail_fast=True)
]
LabelNames = Annotated[list[str], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True)]


class Scores(Document):
    """Metrics of an evaluation on a split."""

    loss: Amount
    accuracy: Fraction
    mcc: Mcc


class TrainScores(Document):
    """Metrics of training; without labels only the loss."""

    loss: Amount
    accuracy: float = math.nan
    mcc: float = math.nan


class Evaluation(Document):
    """A record of metrics.jsonl whose event is `evaluation`, of a classifier."""

    event: Literal["evaluation"]
    epoch: Amount
    train: TrainScores
    val: Scores
    dev: Annotated[dict[str, Scores], Field(max_length=MAX_SPLITS)] = Field({})


class SplitSummary(Scores):
    """Metrics of the finished model on a split."""

    num_examples: Annotated[int, Field(ge=0)]
    majority_rate: Fraction


class Best(Document):
    """The evaluation whose weights were kept."""

    epoch: Amount


class Summary(Document):
    """summary.json of any finished run."""

    model_config = ConfigDict(extra="allow")

    command: str
    seed: Seed | None = None
    experiment: str | None = None  # of classifiers


class ClassifierSummary(Summary):
    """summary.json of a run that trained one classifier."""

    seed: Seed
    experiment: str
    model: str
    labels: LabelNames
    best: Best
    splits: Annotated[dict[str, SplitSummary], Field(max_length=MAX_SPLITS)]
    threshold: Fraction | None
    seconds: Amount
    leave_out: Fold | None = None

    @field_validator("splits")
    @classmethod
    def _has_val(cls, splits: dict[str, Any]) -> dict[str, Any]:
        if "val" not in splits:
            raise ValueError("`val` is missing")
        return splits


class SplitPredictions(Document):
    """Labels and predictions of a split's sentences."""

    labels: Labels
    predictions: Labels

    @model_validator(mode="after")
    def _fit(self) -> SplitPredictions:
        if len(self.labels) != len(self.predictions):
            raise ValueError(
                f"{len(self.labels)} labels and {len(self.predictions)} predictions; must be as many"
            )
        return self


class Predictions(RootModel[Annotated[dict[str, SplitPredictions], Field(max_length=MAX_SPLITS)]]):
    """predictions.json: split -> labels and predictions."""

    model_config = ConfigDict(strict=True)
