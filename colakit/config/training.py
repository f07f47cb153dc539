"""How a run learns: rate, portions, and how its best moment is chosen."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from colakit.config.section import Section, Share


class LoopSettings(Section):
    """How fast, in what portions, and how often a run speaks and saves."""

    HAS_LARGEST: ClassVar[bool] = False  # whether micro_batch_size is a bound, for batches of any size

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    batch_size: int = Field(32, ge=1, description="sentences a step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sentences a backward pass; null is the whole batch"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; vectors do not decay")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall of the rate after warm-up"
    )
    warmup: Share = Field(0.06, description="share of the steps in which the rate rises")
    decay: float = Field(
        1.0, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="longest gradient (2-norm); null does not clip"
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations; null: by epochs, where there are any"
    )
    log_every: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")
    save_every_steps: int | None = Field(
        None, ge=1, description="steps between resumable states; null: at evaluations"
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        micro = self.micro_batch_size
        if (
            micro is not None
            and self.batch_size % micro
            and not (self.HAS_LARGEST and micro > self.batch_size)
        ):
            raise ValueError(
                f"batch_size (={self.batch_size}) must be a multiple of "
                f"micro_batch_size (={self.micro_batch_size})"
            )
        return self


class TrainingSettings(LoopSettings):
    """How long a classifier trains, and by what its best moment is chosen."""

    epochs: int = Field(10, ge=1, description="passes over train")
    evaluate_every_epochs: int = Field(
        1, ge=1, description="epochs between evaluations on the held-out slice"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="measure and keep a moving average of the weights, of which each step leaves so much; "
        "null takes the weights themselves",
    )
    metric_for_best_model: Literal["mcc", "accuracy", "loss"] = Field(
        "mcc", description="held-out figure that names the best model"
    )
    threshold: Literal["tuned", "argmax"] = Field(
        "tuned",
        description="two classes: decide at the threshold best on the held-out slice, or at one half",
    )
    track_dev: bool = Field(
        False, description="also measure dev at every evaluation, for curves; chooses nothing"
    )
