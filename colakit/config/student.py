"""What a student is, what it is taught, and on which sentences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from colakit.config.section import MAX_SEED, Names, Section, Share, no_bool
from colakit.config.training import TrainingSettings

Cell = Literal["rnn", "gru", "lstm"]
Pooling = Literal["last", "mean", "max", "attention"]


class StudentSettings(Section):
    """Shape and start of the recurrent student, for `distill` and `train-scratch` alike."""

    cell: Cell = Field("lstm", description="recurrent cell")
    embedding_size: int = Field(128, ge=1, description="width of the token embedding")
    hidden_size: int = Field(256, ge=1, description="width of each direction's state")
    num_layers: int = Field(1, ge=1, le=8, description="recurrent layers")
    bidirectional: bool = Field(True, description="read from both ends")
    pooling: Pooling = Field("attention", description="how the states of a sentence become one vector")
    dropout: Share = Field(0.3, description="on embeddings, between layers, before the head")
    vocabulary: int | None = Field(
        None, ge=1, description="embed only so many tokens, the most frequent in training; the rest are one"
    )
    embeddings: Literal["base", "random"] = Field(
        "base", description="start of the embedding: the base's own, in its principal directions; or drawn"
    )


class StudentTrainingSettings(TrainingSettings):
    """One budget for `distill` and for its control `train-scratch`."""

    max_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps in all, whatever is trained on; null: `epochs` sets it",
    )
    lm_weight: float = Field(
        0.0,
        ge=0,
        description="weight of predicting the next and the previous token, among those that training reads",
    )
    lm_weight_end: float | None = Field(
        None, ge=0, description="that weight at the end; it moves in a line; null keeps it"
    )


class DistillSettings(Section):
    """How the student learns from its teachers."""

    teacher: Names = Field(
        (), description="ckpt.pt, run folder or adapter folder; of several, the mean logits are learnt"
    )
    upsample: int = Field(
        1, ge=1, le=1000, description="times that an epoch reads train beside a transfer set"
    )
    kd_weight: float = Field(
        0.5, ge=0, le=1, description="weight of the soft loss; the rest is cross-entropy"
    )
    kd_weight_end: float | None = Field(
        None, ge=0, le=1, description="that weight at the end; it moves in a line; null keeps it"
    )
    temperature: float = Field(2.0, gt=0, description="softens teacher and student in the KL")
    temperature_end: float | None = Field(
        None, gt=0, description="the temperature at the end; it moves in a line; null keeps it"
    )
    soft_loss: Literal["kl", "mse"] = Field(
        "kl", description="temperature²·KL(teacher ‖ student), or logit MSE"
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        description="weight of matching the first teacher's last hidden state, through a projection",
    )


class TrainScratchSettings(Section):
    """What the control is given."""

    augmented: bool = Field(
        False,
        description="add as many sentences as a transfer set has: near misses of train, called unacceptable, "
        "and acceptable ones again",
    )


class TransferSettings(Section):
    """Sentences beyond train, which the teachers of `distill` label."""

    size: float = Field(3.0, ge=0, le=1000, description="sentences, as a multiple of train; 0 is none")
    sources: dict[
        Literal["corrupt", "word_resample", "lm_sample", "lm_sample_corrupt", "text", "text_corrupt"],
        Annotated[float, BeforeValidator(no_bool), Field(gt=0)],
    ] = Field(
        {"lm_sample": 3.0, "corrupt": 1.0, "lm_sample_corrupt": 1.0},
        min_length=1,
        description="source -> share: near misses of train sentences, train sentences with a word that "
        "`language_model` samples, sentences that it samples, near misses of those, whole sentences of "
        "`text`, near misses of those",
    )
    text: str | None = Field(
        None, description="text file or folder (plain, .gz, .xz), a sentence a line or prose"
    )
    language_model: str | None = Field(
        None, description="base to sample from; null is the teacher's, as it was before it was tuned"
    )
    sampler_epochs: int = Field(
        3, ge=0, description="passes over train that tune it first, to write as train does; 0 does not"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the set; runs that are compared should share it")

    @property
    def needs_sampler(self) -> bool:
        """Whether a source samples from a language model."""
        return bool(self.size and {"word_resample", "lm_sample", "lm_sample_corrupt"} & set(self.sources))

    @model_validator(mode="after")
    def _sources_have_what_they_need(self) -> Self:
        if {"text", "text_corrupt"} & set(self.sources) and self.text is None:
            raise ValueError("sources text and text_corrupt need transfer.text")
        if self.text is not None and not {"text", "text_corrupt"} & set(self.sources):
            raise ValueError(
                "transfer.text is read by the sources text and text_corrupt alone; "
                "name one of them, such as transfer.sources={corrupt: 1, text: 1, text_corrupt: 1}"
            )
        return self
