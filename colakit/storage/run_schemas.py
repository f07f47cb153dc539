"""The content of the JSON files of a run folder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, RootModel, field_validator, model_validator

from colakit.config.section import MAX_SEED
from colakit.data.corpora import MAX_LABELS
from colakit.utils.documents import Document

MAX_SPLITS = 64
MAX_RUNS = 1000

Fraction = Annotated[float, Field(ge=0, le=1)]
Mcc = Annotated[float, Field(ge=-1, le=1)]
Loss = Annotated[float, Field(ge=-1e30, le=1e30)]  # the figures compute with it
Amount = Annotated[float, Field(ge=0, le=1e9)]  # epochs, seconds
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Step = Annotated[int, Field(ge=1, lt=2**53)]
Fold = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$")]
Labels = Annotated[
    list[Annotated[int, Field(ge=0, lt=MAX_LABELS)]], Field(min_length=1, max_length=2**22, fail_fast=True)
]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("labels must differ")
    return names


LabelNames = Annotated[
    list[str], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True), AfterValidator(_distinct)
]


class Decisions(Document):
    """Metrics of a decision rule."""

    accuracy: Fraction
    mcc: Mcc


class Scores(Decisions):
    """Metrics of an evaluation on a split."""

    loss: Loss


class ValScores(Scores):
    """Metrics of the validation split, also at argmax."""

    argmax: Decisions


class TrainScores(Document):
    """Metrics of training; without labels only the loss."""

    loss: Loss
    accuracy: Fraction = Field(0.0)
    mcc: Mcc = Field(0.0)


class StepRecord(Document):
    """A record of metrics.jsonl of a step."""

    event: Literal["step"]
    step: Step
    loss: Loss


class EvaluationRecord(Document):
    """A record of metrics.jsonl of an evaluation of a classifier."""

    event: Literal["evaluation"]
    step: Step
    epoch: Amount
    train: TrainScores
    val: ValScores
    dev: Annotated[dict[str, Scores], Field(max_length=MAX_SPLITS)] = Field({})


Record = Annotated[StepRecord | EvaluationRecord, Field(discriminator="event")]


class MetricsFile(RootModel[Annotated[list[Record], Field(fail_fast=True)]]):
    """metrics.jsonl: its records in their order."""

    model_config = ConfigDict(strict=True)


class SplitSummary(Scores):
    """Metrics of the finished model on a split."""

    num_examples: Count
    majority_rate: Fraction


class Best(Document):
    """The evaluation whose weights were kept."""

    epoch: Amount


class Environment(Document):
    """environment.json: the process that began the run."""

    model_config = ConfigDict(extra="allow")

    colakit: str
    python: str
    platform: str
    packages: dict[str, str | None]
    device: str
    reason: str
    threads: Annotated[int, Field(ge=1, lt=2**20)]
    git_commit: str | None = None
    command_line: list[str]
    origins: dict[str, str] = Field({})  # dotted key of a setting -> flag, variable or file


class Summary(Document):
    """summary.json of any finished run or runs."""

    model_config = ConfigDict(extra="allow")

    command: str
    seed: Seed | None = None
    experiment: str | None = None  # of classifiers
    model: str | None = None  # of classifiers
    max_steps: Step | None = None


class ParameterCounts(Document):
    """Parameters of a model."""

    model_config = ConfigDict(extra="allow")

    total: Annotated[int, Field(ge=1, lt=2**53)]
    trainable: Count


class ResultSummary(Summary):
    """summary.json of a run whose result is one classifier; of a baseline of n-grams nothing more."""

    experiment: str
    model: str
    labels: LabelNames
    splits: Annotated[dict[str, SplitSummary], Field(max_length=MAX_SPLITS)]
    threshold: Fraction | None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    train_fingerprint: str | None = None
    parameters: ParameterCounts | None = None
    compute: str | None = None
    peak_memory_mib: Count | None = None
    examples_per_second: Amount | None = None

    @field_validator("splits")
    @classmethod
    def _has_val(cls, splits: dict[str, Any]) -> dict[str, Any]:
        if "val" not in splits:
            raise ValueError("`val` is missing")
        return splits


class ClassifierSummary(ResultSummary):
    """summary.json of a run that trained one classifier step by step."""

    seed: Seed
    best: Best
    train_loss: str
    steps: Count
    max_steps: Step
    examples: Count
    seconds: Amount
    leave_out: Fold | None = None
    base: str | None = None
    teachers: Annotated[list[dict[str, Any]], Field(max_length=MAX_RUNS)] | None = None
    student_fingerprint: str | None = None


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


class Predictions(Document):
    """predictions.json, without the sentences' numbers and probabilities."""

    label_names: LabelNames
    splits: Annotated[dict[str, SplitPredictions], Field(max_length=MAX_SPLITS)]

    @model_validator(mode="after")
    def _are_named(self) -> Predictions:
        for name, split in self.splits.items():
            if (largest := max(*split.labels, *split.predictions)) >= len(self.label_names):
                raise ValueError(f"splits.{name}: label {largest} has no name")
        return self


class RunsRecord(Document):
    """runs.json: the command and its seeds, or its number of folds."""

    command: Literal["finetune", "distill", "train-scratch"]
    folds: Annotated[int, Field(ge=2, le=MAX_RUNS)] | None = None
    seeds: Annotated[tuple[int, ...], Field(max_length=MAX_RUNS)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> RunsRecord:
        if (self.folds is None) == (self.seeds is None):
            raise ValueError("must have either `folds` or `seeds`")
        return self
