"""How a base is tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from colakit.config.section import Names, Numbers, Section, Share, no_bool
from colakit.config.training import TrainingSettings


class LoRASettings(Section):
    """Which weights are adapted, and how."""

    rank: int = Field(8, ge=1, description="R, rank of the update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha/rank")
    dropout: Share = Field(0.0, description="probability of dropping an adapter's input")
    target_modules: Names = Field(
        ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
        min_length=1,
        description="exact dotted tails of linear layers",
    )
    rank_pattern: dict[str, Annotated[int, BeforeValidator(no_bool), Field(ge=1)]] = Field(
        {}, description="Module suffix -> rank; the longest matching suffix decides."
    )
    alpha_pattern: dict[str, Annotated[float, BeforeValidator(no_bool), Field(gt=0)]] = Field(
        {}, description="Module suffix -> alpha; the longest matching suffix decides."
    )
    layers_to_transform: Numbers | None = Field(
        None, description="blocks that are adapted, numbered from 0, such as 9,10,11; null is all"
    )
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank)")
    dora: bool = Field(False, description="learn row magnitudes apart (DoRA)")
    init: Literal["kaiming", "pissa"] = Field("kaiming", description="start of A and B")
    loraplus_lr_ratio: float = Field(1.0, ge=1, description="LoRA+: learning rate of B over that of A")
    modules_to_save: Names = Field(
        ("score", "ln_1", "ln_2", "ln_f"),
        description="Modules trained in full beside the adapters: the head `score` and LayerNorms.",
    )

    @model_validator(mode="after")
    def _one_variant(self) -> LoRASettings:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa cannot be combined; choose one")
        return self


class FinetuneSettings(TrainingSettings):
    """Tuning the base."""

    objective: Literal["classification", "language-modelling"] = Field(
        "classification", description="label sentences, or write sentences like those of train"
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="train an adapter on the frozen base, or every weight of it"
    )
    from_scratch: bool = Field(
        False, description="draw the base's weights anew: the control for pre-training; needs method: full"
    )
    leave_out: str | None = Field(
        None, description="fold of train left out, written i/k, so that this teacher has not seen it"
    )
    add_bos: bool = Field(False, description="put the end-of-text token before each sentence")
    add_eos: bool = Field(
        False, description="put the end-of-text token after each sentence; the head reads it"
    )
    base_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout inside the base; null is its own"
    )
    frozen_cache_mib: int = Field(
        1024,
        ge=0,
        description="memory, in MiB and of each process, for what the blocks below all adapted ones make of "
        "train and held-out sentences; they are computed once where it suffices, else at every step",
    )

    @field_validator("leave_out")
    @classmethod
    def _fold_of_several(cls, value: str | None) -> str | None:
        number, _, folds = (value or "1/2").partition("/")
        if not (number.isdecimal() and folds.isdecimal() and 1 <= int(number) <= int(folds) != 1):
            raise ValueError(f"a fold is written i/k, 1 ≤ i ≤ k and k > 1, such as 2/5 (got {value!r})")
        return value

    @model_validator(mode="after")
    def _random_weights_must_train(self) -> Self:
        if self.from_scratch and self.method != "full":
            raise ValueError("from_scratch needs method: full; an adapter on random weights learns little")
        return self
