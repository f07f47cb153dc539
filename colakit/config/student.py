"""Settings of the student, its training, distillation and the transfer set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from colakit.config.section import MAX_COUNT, MAX_EPOCHS, MAX_SEED, Name, Names, Section, Share, no_bool
from colakit.config.training import TrainingSettings

Cell = Literal["rnn", "gru", "lstm", "bag"]
MAX_WEIGHTS = 2**28  # 1 GiB
Pooling = Literal["last", "mean", "max", "attention"]


class StudentSettings(Section):
    """The recurrent student of `distill` and `train-scratch`."""

    base: Name | None = Field(
        None,
        description="Base to take the student's tokenizer and token embeddings from; null: the teacher, for "
        "`train-scratch` the setting `base`.",
    )
    init_from: Name | None = Field(
        None,
        description="Student (run folder or ckpt.pt) whose weights this one starts with; `builtin`: one that "
        "tells real from corrupted sentences, for the base `builtin`; null: random weights, with "
        "`embeddings`.",
    )
    cell: Cell = Field("lstm", description="Recurrent cell; bag: none, the embeddings are pooled.")
    embedding_size: int = Field(128, ge=1, le=2**12, description="Width of the token embedding.")
    hidden_size: int = Field(256, ge=1, le=2**14, description="Hidden size of each direction.")
    num_layers: int = Field(1, ge=1, le=8, description="Number of recurrent layers.")
    bidirectional: bool = Field(True, description="Read sentences in both directions.")
    pooling: Pooling = Field("attention", description="Pooling of the hidden states of a sentence.")
    dropout: Share = Field(
        0.3, description="Dropout probability of embeddings, between layers and before the head."
    )
    vocabulary: int | None = Field(
        None,
        ge=1,
        le=2**24,
        description="Embed only this many tokens, the most frequent of train; all others share one "
        "vector; null: all.",
    )
    embeddings: Literal["base", "random"] = Field(
        "base",
        description="Initialise the embedding with the principal components of the base's, or at random.",
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.cell == "bag":
            if self.pooling == "last":
                raise ValueError("pooling last needs a recurrent cell; a bag has mean, max or attention")
            return self
        directions = 1 + self.bidirectional
        inputs = self.embedding_size + (self.num_layers - 1) * directions * self.hidden_size
        rows = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell] * directions * self.hidden_size
        weights = rows * (inputs + self.num_layers * self.hidden_size)
        if weights > MAX_WEIGHTS:
            raise ValueError(
                f"embedding_size, hidden_size and num_layers give {weights:,} recurrent weights; "
                f"at most {MAX_WEIGHTS:,} are allowed"
            )
        return self


class StudentTrainingSettings(TrainingSettings):
    """Training of the student, the same for `distill` and its control `train-scratch`."""

    epochs: int = Field(
        10,
        ge=1,
        le=MAX_EPOCHS,
        description="Passes of `distill` over train and transfer set; `train-scratch` takes as many steps.",
    )
    max_steps: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Optimizer steps in total; null: set by `epochs`."
    )
    lm_weight: float = Field(
        0.0, ge=0, description="Weight of the loss that predicts the next and the previous token."
    )
    lm_weight_end: float | None = Field(
        None, ge=0, description="Value of lm_weight at the end, approached linearly; null keeps it constant."
    )


class DistillSettings(Section):
    """The distillation loss."""

    teacher: Names = Field(
        (), description="Run folders, ckpt.pt files or adapter folders; the logits of several are averaged."
    )
    allow_teacher_below_chance: bool = Field(
        False,
        description="Distil even if the teacher's MCC on val is below 0 by more than its standard error.",
    )
    upsample: int = Field(
        1, ge=1, le=1000, description="Passes over train in an epoch, beside the transfer set."
    )
    kd_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of the soft loss; 1 - kd_weight is the weight of cross-entropy."
    )
    kd_weight_end: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Value of kd_weight at the end, approached linearly; null keeps it constant.",
    )
    temperature: float = Field(
        2.0, ge=0.01, le=100, description="Temperature of teacher and student in the KL divergence."
    )
    temperature_end: float | None = Field(
        None,
        ge=0.01,
        le=100,
        description="Temperature at the end, approached linearly; null keeps it constant.",
    )
    soft_loss: Literal["kl", "mse"] = Field(
        "kl", description="temperature²·KL(teacher ‖ student), or the mean squared error of logits."
    )
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of the loss that matches the first teacher's last hidden state."
    )


class TrainScratchSettings(Section):
    """The control."""

    budget: Literal["distill", "epochs"] = Field(
        "distill",
        description="Optimizer steps without student_training.max_steps: those of `distill` with the same "
        "settings, or student_training.epochs passes over the control's own data.",
    )
    augmented: bool = Field(
        False,
        description="Add as many sentences as a transfer set has: corrupted sentences of train, labelled "
        "unacceptable, and repeated acceptable ones.",
    )


class TransferSettings(Section):
    """The transfer set: sentences beside train, labelled by the teachers."""

    size: float = Field(
        3.0, ge=0, le=1000, description="Sentences, as a multiple of train; 0 disables the transfer set."
    )
    sources: dict[
        Literal[
            "corrupt", "word_resample", "lm_sample", "lm_sample_corrupt", "text", "text_corrupt", "grammar"
        ],
        Annotated[float, BeforeValidator(no_bool), Field(gt=0)],
    ] = Field(
        {"lm_sample": 3.0, "corrupt": 1.0, "lm_sample_corrupt": 1.0},
        min_length=1,
        description="Source -> share: corrupt (corrupted train sentences), word_resample (train sentences "
        "with one word sampled from the language model), lm_sample (sampled sentences), "
        "lm_sample_corrupt (sampled and corrupted), text (sentences of `text`), text_corrupt "
        "(those, corrupted), grammar (pairs of the built-in corpus's grammar).",
    )
    text: str | None = Field(
        None,
        description="Text file or folder (plain, .gz, .xz, .zst): one sentence a line, prose, or a table.",
    )
    text_column: Name | None = Field(
        None, description="Column of the sentences if `text` is a table; null: that of data.text_column."
    )
    language_model: str | None = Field(
        None, description="Base to sample from; null: the teacher's base before fine-tuning."
    )
    sampler_epochs: int = Field(
        3,
        ge=0,
        le=MAX_EPOCHS,
        description="Epochs of language-model fine-tuning on train before sampling; 0 disables it.",
    )
    select_for: Name | None = Field(
        None,
        description="Student (run folder) that selects: of `candidates` times as many sentences, those "
        "that it is least certain of are kept; null: all are.",
    )
    candidates: float | None = Field(
        None, ge=1, le=1000, description="Sentences drawn for each that select_for keeps; null: 4."
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="Sampling temperature.")
    seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Random seed of the transfer set; runs to be compared must share it.",
    )

    @property
    def drawn_for_each(self) -> float:
        """Sentences drawn for each that the transfer set keeps."""
        return 1.0 if self.select_for is None else self.candidates or 4.0

    @property
    def needs_sampler(self) -> bool:
        """Whether a source samples from a language model."""
        return bool(self.size and {"word_resample", "lm_sample", "lm_sample_corrupt"} & set(self.sources))

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if {"text", "text_corrupt"} & set(self.sources) and self.text is None:
            raise ValueError("the sources text and text_corrupt need transfer.text")
        if self.candidates is not None and self.select_for is None:
            raise ValueError("candidates needs select_for: a student that selects")
        if self.text is not None and not {"text", "text_corrupt"} & set(self.sources):
            raise ValueError(
                "transfer.text requires the source text or text_corrupt, "
                "such as transfer.sources={corrupt: 1, text: 1, text_corrupt: 1}"
            )
        return self
