"""Settings of pre-training: language modelling, and real sentences against corrupted ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from colakit.config.section import MAX_BATCH, MAX_COUNT, MAX_EPOCHS, Share, no_bool
from colakit.config.training import LoopSettings, TrainingSettings

MAX_PARAMETERS = 2**31  # 8 GiB of weights


class PretrainSettings(LoopSettings):
    """Pre-training on running text.

    `objective: real-fake` uses only `text`, `upsample`, `init_from` and `start_weight`.
    """

    HAS_LARGEST: ClassVar[bool] = True

    objective: Literal["language-modelling", "real-fake"] = Field(
        "language-modelling",
        description="Predict the next token, or tell real sentences from corrupted ones (section real_fake).",
    )
    text: dict[str, str] = Field({}, description="Name -> text file or folder (plain, .gz, .xz, .zst).")
    upsample: dict[str, Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=1000)]] = Field(
        {}, description="Name -> passes over this text in an epoch; default 1."
    )
    init_from: str | None = Field(
        None,
        description="Base to continue from, with its shape and tokenizer; null starts from random weights.",
    )
    start_weight: Share = Field(
        0.0, description="Weight of `init_from` in the average with the trained weights that is saved."
    )
    tokenizer: str | None = Field(None, description="Folder of a tokenizer; null trains one on the text.")
    vocab_size: int = Field(8192, ge=257, le=2**20, description="Vocabulary size of a trained tokenizer.")
    family: Literal["gpt2", "llama", "qwen2", "qwen3"] = Field(
        "gpt2",
        description="GPT-2, or RMSNorm, rotary positions and SwiGLU as in Llama (qwen2: query, key and "
        "value biases; qwen3: normalised queries and keys).",
    )
    num_layers: int = Field(6, ge=1, le=2**8, description="Number of blocks.")
    width: int = Field(384, ge=1, le=2**14, description="Width of the residual stream.")
    num_heads: int = Field(6, ge=1, le=2**14, description="Number of attention heads.")
    num_kv_heads: int | None = Field(
        None,
        ge=1,
        le=2**14,
        description="Number of heads of keys and values (grouped-query attention); null: num_heads.",
    )
    num_positions: int = Field(128, ge=8, le=2**17, description="Maximum sequence length in tokens.")
    window: int | None = Field(
        None,
        ge=8,
        le=2**17,
        description="Tokens predicted in a training window, with `init_from`; null: num_positions.",
    )
    dropout: Share = Field(
        0.0, description="Dropout probability of embeddings, attention and residual branches."
    )
    tokens: int = Field(
        300_000_000,
        ge=1,
        le=10**13,
        description="Training tokens in total; a resumed run may raise it until the learning rate starts "
        "to decay.",
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Optimizer of the blocks' matrices; AdamW trains all other weights."
    )
    muon_lr: float = Field(
        0.006, gt=0, description="Peak learning rate of Muon (spectral norm of an update)."
    )
    val_fraction: Share = Field(0.01, description="Fraction of each text held out as the validation split.")
    evaluate_windows: int = Field(
        512, ge=1, le=10**6, description="Validation windows of each text in an evaluation during training."
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile; auto: if a compiler is available."
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(128, ge=1, le=MAX_BATCH, description="Windows in a step, over all processes.")
    micro_batch_size: int | None = Field(
        32, ge=1, le=MAX_BATCH, description="Windows in a backward pass; null: the whole batch."
    )
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Weight decay of matrices (with Muon, of the blocks' matrices); vectors do not decay.",
    )
    warmup: Share = Field(0.01, description="Fraction of the steps with a rising learning rate.")
    decay: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Fraction of the steps after warm-up, at the end, with a falling learning rate.",
    )
    evaluate_every_steps: int | None = Field(
        500, ge=1, le=MAX_COUNT, description="Steps between evaluations."
    )
    save_every_steps: int | None = Field(100, ge=1, le=MAX_COUNT, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.objective == "real-fake" and self.init_from is None:
            raise ValueError("objective: real-fake trains an existing base; set init_from")
        if self.start_weight and self.init_from is None:
            raise ValueError(f"start_weight (={self.start_weight}) requires init_from")
        if self.window is not None and self.init_from is None:
            raise ValueError(
                f"window (={self.window}) requires init_from; lower num_positions to train from "
                "random weights on shorter windows"
            )
        return self

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width (={self.width}) must be divisible by num_heads (={self.num_heads})")
        if self.family != "gpt2" and self.width // self.num_heads % 2:
            raise ValueError(
                f"width / num_heads (={self.width // self.num_heads}) must be even: each pair rotates"
            )
        if self.num_kv_heads is not None:
            if self.family == "gpt2":
                raise ValueError(f"num_kv_heads (={self.num_kv_heads}) requires family llama, qwen2 or qwen3")
            if self.num_heads % self.num_kv_heads:
                raise ValueError(
                    f"num_heads (={self.num_heads}) must be divisible by num_kv_heads (={self.num_kv_heads})"
                )
        parameters = 12 * self.num_layers * self.width**2
        parameters += (self.vocab_size + self.num_positions) * self.width
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"width, num_layers, vocab_size and num_positions give {parameters:,} parameters; "
                f"at most {MAX_PARAMETERS:,} are allowed"
            )
        return self

    @property
    def window_tokens(self) -> int:
        """Predicted tokens in a training window."""
        return self.num_positions if self.window is None else self.window

    @property
    def step_tokens(self) -> int:
        """Predicted tokens in a step."""
        return self.batch_size * self.window_tokens

    @property
    def max_steps(self) -> int:
        """Optimizer steps in `tokens`; at least one."""
        return max(1, self.tokens // self.step_tokens)


class RealFakeSettings(TrainingSettings):
    """`pretrain.objective: real-fake`: classification of real sentences and corrupted copies."""

    sentences: int = Field(
        400_000, ge=10, le=MAX_COUNT, description="Real sentences; each adds one corrupted copy."
    )
    val_fraction: Share = Field(
        0.01, description="Fraction of the sentence pairs held out as the validation split."
    )
    lm_weight: float = Field(
        0.07, ge=0, description="Weight of the language-modelling loss of real sentences, per token."
    )
    pair_weight: float = Field(
        0.5,
        ge=0,
        description="Weight of the loss that prefers a real sentence's likelihood to its corrupted copy's.",
    )
    epochs: int = Field(1, ge=1, le=MAX_EPOCHS, description="Passes over the sentences.")
    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    batch_size: int = Field(
        64, ge=2, le=MAX_BATCH, multiple_of=2, description="Sentences in a step, over all processes."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=2,
        le=MAX_BATCH,
        multiple_of=2,
        description="Sentences in a backward pass; null: the whole batch.",
    )
    warmup: Share = Field(0.02, description="Fraction of the steps with a rising learning rate.")
    decay: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Fraction of the steps after warm-up, at the end, with a falling learning rate.",
    )
    evaluate_every_steps: int | None = Field(
        500, ge=1, le=MAX_COUNT, description="Steps between evaluations."
    )
