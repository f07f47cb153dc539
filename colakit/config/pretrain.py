"""How a base is made: causal language modelling, and the stage after it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from colakit.config.section import Share, no_bool
from colakit.config.training import LoopSettings, TrainingSettings


class PretrainSettings(LoopSettings):
    """Causal language modelling: what is read, the model's shape, and how it learns."""

    HAS_LARGEST: ClassVar[bool] = True

    objective: Literal["language-modelling", "real-fake"] = Field(
        "language-modelling",
        description="Predict the next token, or tell real sentences from corrupted ones (section real_fake).",
    )
    text: dict[str, str] = Field({}, description="name -> text file or folder (plain, .gz, .xz)")
    upsample: dict[str, Annotated[int, BeforeValidator(no_bool), Field(ge=1)]] = Field(
        {}, description="name -> times that an epoch reads it; 1 where not given"
    )
    init_from: str | None = Field(
        None,
        description="base to go on from, whose shape and tokenizer stay; null begins with random weights",
    )
    start_weight: Share = Field(
        0.0, description="of the base gone on from, in the average with the trained weights that is written"
    )
    tokenizer: str | None = Field(
        None, description="folder with a tokenizer; null trains one of `vocab_size` tokens on the text"
    )
    vocab_size: int = Field(8192, ge=257, description="V of a tokenizer that is trained")
    num_layers: int = Field(6, ge=1, description="blocks")
    width: int = Field(384, ge=1, description="D, of the residual stream")
    num_heads: int = Field(6, ge=1, description="attention heads")
    num_positions: int = Field(128, ge=8, description="the most tokens that the model can read")
    window: int | None = Field(
        None,
        ge=8,
        description="tokens a training window predicts, of a base gone on from; null is its positions",
    )
    dropout: Share = Field(0.0, description="in embeddings, attention and residual branches")
    tokens: int = Field(
        300_000_000, ge=1, description="training tokens in all; may grow before the rate begins to fall"
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="of the blocks' matrices; all else is AdamW's"
    )
    muon_lr: float = Field(0.006, gt=0, description="peak rate of Muon, in the spectral norm of an update")
    val_fraction: Share = Field(0.01, description="share of each text held out")
    evaluate_windows: int = Field(512, ge=1, description="windows of each held-out text measured in a run")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile; auto: where there is a compiler"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(128, ge=1, description="windows a step, over all processes")
    micro_batch_size: int | None = Field(32, ge=1, description="windows a backward pass; null is the batch")
    weight_decay: float = Field(
        0.1, ge=0, description="of matrices, under Muon of the blocks' alone; vectors do not decay"
    )
    warmup: Share = Field(0.01, description="share of the steps in which the rate rises")
    decay: float = Field(
        0.25, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    evaluate_every_steps: int | None = Field(500, ge=1, description="steps between evaluations")
    save_every_steps: int | None = Field(100, ge=1, description="steps between resumable states")

    @model_validator(mode="after")
    def _has_start(self) -> Self:
        if self.objective == "real-fake" and self.init_from is None:
            raise ValueError("objective: real-fake trains an existing base; set init_from")
        if self.start_weight and self.init_from is None:
            raise ValueError(f"start_weight (={self.start_weight}) is of init_from, which is not given")
        if self.window is not None and self.init_from is None:
            raise ValueError(
                f"window (={self.window}) is of init_from, which is not given: random weights would "
                "not learn the positions beyond it; give fewer num_positions"
            )
        return self

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width (={self.width}) must be divisible by num_heads (={self.num_heads})")
        return self

    @property
    def window_tokens(self) -> int:
        """Tokens that a training window predicts."""
        return self.num_positions if self.window is None else self.window

    @property
    def step_tokens(self) -> int:
        """Tokens that a step's windows predict."""
        return self.batch_size * self.window_tokens

    @property
    def max_steps(self) -> int:
        """Steps that read `tokens`; one at least."""
        return max(1, self.tokens // self.step_tokens)


class RealFakeSettings(TrainingSettings):
    """The second stage of pre-training, on sentences of `pretrain.text`: real, or corrupted in one place."""

    sentences: int = Field(400_000, ge=10, description="real sentences; as many corrupted ones join them")
    val_fraction: Share = Field(0.01, description="share of them held out")
    lm_weight: float = Field(
        0.07, ge=0, description="weight of a real token's cross-entropy beside a sentence's"
    )
    pair_weight: float = Field(
        0.5, ge=0, description="weight of the preference for a real sentence over its corrupted copy"
    )
    epochs: int = Field(1, ge=1, description="passes over the sentences")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    batch_size: int = Field(64, ge=2, multiple_of=2, description="sentences a step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=2, multiple_of=2, description="sentences a backward pass; null is the whole batch"
    )
    warmup: Share = Field(0.02, description="share of the steps in which the rate rises")
    decay: float = Field(
        0.4, gt=0, le=1, description="share of the steps after warm-up, at the end, in which the rate falls"
    )
    evaluate_every_steps: int | None = Field(
        500, ge=1, description="steps between evaluations on the held-out slice"
    )
