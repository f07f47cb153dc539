"""Settings of the baselines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from colakit.config.section import Section, list_of, no_bool

Penalty = Annotated[float, Field(ge=1e-6, le=1e6), BeforeValidator(no_bool)]


class BaselineSettings(Section):
    """What a model reaches without pretraining and without word order beyond a few words."""

    kind: Literal["tfidf", "majority", "bag"] = Field(
        "tfidf",
        description="tfidf: TF-IDF of n-grams with logistic regression; majority: the most frequent label; "
        "bag: mean of token embeddings with a linear layer, trained as `train-scratch` is.",
    )
    words: int = Field(3, ge=0, le=5, description="tfidf: longest n-gram of words; 0 for none.")
    characters: int = Field(
        5, ge=0, le=8, description="tfidf: longest n-gram of characters within a word, from 2; 0 for none."
    )
    penalties: Annotated[
        tuple[Penalty, ...], BeforeValidator(list_of), Field(min_length=1, max_length=16)
    ] = Field(
        (1.0, 10.0, 100.0),
        description="tfidf: inverse strengths of the squared penalty; the one with the highest MCC on the "
        "validation split is kept.",
    )

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        if self.kind == "tfidf" and not (self.words or self.characters):
            raise ValueError("tfidf needs words or characters above 0")
        return self
