"""Settings of sweeps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from colakit.config.finetune import MAX_FOLDS
from colakit.config.section import MAX_SEED, Numbers, Section, no_bool

MAX_TRIALS = 10_000

Number = Annotated[float, BeforeValidator(no_bool)]


class Range(Section):
    """An interval of a numeric setting, ends included."""

    low: Number = Field(description="Lowest value.")
    high: Number = Field(description="Highest value.")
    step: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="Distance between values; null: any value, or 1 for whole numbers."
    )
    log: bool = Field(False, description="Sample the logarithm uniformly.")

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low (={self.low:g}) must be less than high (={self.high:g})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log requires low above 0 and no step")
        return self


Choices = Annotated[tuple[Any, ...], Field(min_length=1)]
Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(lambda value: "range" if isinstance(value, (dict, Range)) else "choices"),
]


class SweepSettings(Section):
    """A search for settings by many trainings (`colakit sweep`)."""

    space: dict[str, Values] = Field(
        {}, description="Dotted setting -> list of choices, or a range `{low, high, step, log}`."
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="tpe: Optuna's tree-structured Parzen estimator; random; grid: every combination.",
    )
    sampler_seed: int = Field(0, ge=0, le=MAX_SEED - MAX_TRIALS, description="Random seed of the sampler.")
    pruner: Literal["none", "median", "asha"] = Field(
        "none",
        description="Stop trials early by their MCC on val. median: below the median of the others at the "
        "same evaluation; asha: successive halving.",
    )
    trials: int = Field(20, ge=1, le=MAX_TRIALS, description="Combinations of settings to train.")
    jobs: int = Field(1, ge=1, le=256, description="Trials side by side on this machine.")
    seeds: Numbers | None = Field(
        None, description="Seeds that each trial trains, for the mean of their MCC on val; null: `seed` only."
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=MAX_FOLDS,
        description="Folds of train in each trial of `finetune`; the objective is then the out-of-fold MCC.",
    )
    heartbeat_seconds: int = Field(
        30,
        ge=1,
        le=3600,
        description="Time between signs of life of a running trial. After four without one, another worker "
        "repeats the trial.",
    )

    @model_validator(mode="after")
    def _check_runs(self) -> Self:
        if self.folds is not None and self.seeds is not None:
            raise ValueError("seeds and folds cannot be combined")
        return self
