"""Settings that every training shares."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from colakit.config.section import MAX_BATCH, MAX_COUNT, MAX_EPOCHS, Section, Share


class LoopSettings(Section):
    """Optimization, logging and checkpoints."""

    HAS_LARGEST: ClassVar[bool] = False  # micro_batch_size may exceed batch_size

    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    batch_size: int = Field(32, ge=1, le=MAX_BATCH, description="Sentences in a step, over all processes.")
    micro_batch_size: int | None = Field(
        None, ge=1, le=MAX_BATCH, description="Sentences in a backward pass; null: the whole batch."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of matrices; vectors do not decay.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after warm-up."
    )
    warmup: Share = Field(0.06, description="Fraction of the steps with a rising learning rate.")
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of the steps after warm-up, at the end, with a falling learning rate.",
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Maximum gradient norm; null disables clipping."
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Steps between evaluations; null: set by epochs."
    )
    log_every: int = Field(20, ge=1, le=MAX_COUNT, description="Steps between lines of metrics.jsonl.")
    save_every_steps: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Steps between checkpoints; null: at every evaluation."
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
    """Training of a classifier, with model selection."""

    epochs: int = Field(10, ge=1, le=MAX_EPOCHS, description="Passes over train.")
    evaluate_every_epochs: int = Field(
        1, ge=1, le=MAX_EPOCHS, description="Epochs between evaluations on val."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Evaluations without improvement before training stops; null never stops early.",
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="EMA decay; null disables EMA.")
    metric_for_best_model: Literal["mcc", "accuracy", "loss"] = Field(
        "mcc", description="Validation metric that selects the best model."
    )
    threshold: Literal["tuned", "argmax"] = Field(
        "tuned", description="Decision threshold of two classes: tuned on val, or 0.5."
    )
    track_dev: bool = Field(False, description="Also evaluate dev during training, for curves only.")
