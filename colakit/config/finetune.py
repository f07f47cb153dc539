"""Settings of fine-tuning and LoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from colakit.config.section import MAX_COUNT, Names, Numbers, Section, Share, no_bool
from colakit.config.training import TrainingSettings

MAX_RANK = 2**13
MAX_FOLDS = 1000


class LoRASettings(Section):
    """LoRA adapters."""

    rank: int = Field(8, ge=1, le=MAX_RANK, description="Rank R of the adapters.")
    alpha: float = Field(16.0, gt=0, description="Numerator of the scaling alpha/rank.")
    dropout: Share = Field(0.0, description="Dropout probability on the adapters' input.")
    target_modules: Names = Field(
        ("all-linear",),
        min_length=1,
        description="Linear layers to adapt, by exact dotted suffix; all-linear: those of all blocks.",
    )
    rank_pattern: dict[str, Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=MAX_RANK)]] = Field(
        {}, description="Module suffix -> rank; the longest matching suffix decides."
    )
    alpha_pattern: dict[str, Annotated[float, BeforeValidator(no_bool), Field(gt=0)]] = Field(
        {}, description="Module suffix -> alpha; the longest matching suffix decides."
    )
    layers_to_transform: Numbers | None = Field(
        None, description="Indices of the blocks to adapt, from 0, such as 9,10,11; null adapts all."
    )
    rslora: bool = Field(False, description="rsLoRA: scale by alpha/sqrt(rank).")
    dora: bool = Field(False, description="DoRA: train row magnitudes separately.")
    init: Literal["kaiming", "pissa"] = Field("kaiming", description="Initialisation of A and B.")
    loraplus_lr_ratio: float = Field(1.0, ge=1, description="LoRA+: ratio of B's learning rate to A's.")
    modules_to_save: Names = Field(
        ("score", "all-norms"),
        description="Modules trained in full beside the adapters: the head `score`, norms, or all-norms.",
    )

    @model_validator(mode="after")
    def _check_variant(self) -> Self:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa cannot be combined; choose one")
        return self


class FinetuneSettings(TrainingSettings):
    """Fine-tuning the base."""

    objective: Literal["classification", "language-modelling"] = Field(
        "classification", description="Classify sentences, or model the language of train's sentences."
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="Train LoRA adapters on the frozen base, or all of its weights."
    )
    from_scratch: bool = Field(
        False,
        description="Initialise the base at random, as a control for pre-training; requires method: full.",
    )
    leave_out: str | None = Field(
        None, description="Fold of train to leave out, written i/k, for out-of-fold predictions."
    )
    add_bos: bool = Field(False, description="Prepend the start token to each sentence.")
    add_eos: bool = Field(
        False, description="Append the end-of-text token to each sentence; the head reads its hidden state."
    )
    base_dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout probability in the base; null keeps the base's own."
    )
    frozen_cache_mib: int = Field(
        1024,
        ge=0,
        le=MAX_COUNT,
        description="Maximum memory per process, in MiB, to cache the hidden states below the lowest "
        "adapted block; if they do not fit, they are computed at every step.",
    )

    @field_validator("leave_out")
    @classmethod
    def _check_fold(cls, value: str | None) -> str | None:
        number, _, folds = (value or "1/2").partition("/")
        is_fold = len(folds) <= 4 >= len(number) and number.isdecimal() and folds.isdecimal()
        if not (is_fold and 1 <= int(number) <= int(folds) and 1 < int(folds) <= MAX_FOLDS):
            raise ValueError(f"a fold is written i/k with 1 ≤ i ≤ k and 1 < k ≤ {MAX_FOLDS}, such as 2/5")
        return value

    @model_validator(mode="after")
    def _check_from_scratch(self) -> Self:
        if self.from_scratch and self.method != "full":
            raise ValueError("from_scratch requires method: full")
        return self
