"""Settings of generation, prediction, evaluation and figures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from colakit.config.section import MAX_BATCH, Names, NamesOrNumbers, Section


class GenerateSettings(Section):
    """Text generation."""

    max_new_tokens: int = Field(50, ge=1, le=10**6, description="Maximum number of tokens to generate.")
    temperature: float = Field(1.0, ge=0, le=100, description="Sampling temperature; 0 is greedy.")
    top_k: int | None = Field(
        None, ge=1, le=2**24, description="Sample from the k most probable tokens; null: all."
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Sample from the most probable tokens with total probability p; null: all.",
    )
    num_samples: int = Field(1, ge=1, le=10**4, description="Continuations.")

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float) -> float:
        if 0 < value < 0.01:
            raise ValueError("temperature is 0 (greedy) or from 0.01 to 100")
        return value


class PredictSettings(Section):
    """Prediction."""

    batch_size: int = Field(256, ge=1, le=MAX_BATCH, description="Sentences in a batch.")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Probability from which the second of two labels is predicted; null: the model's own.",
    )


class EvaluateSettings(Section):
    """Evaluation."""

    splits: Names = Field(
        (),
        description="Splits to evaluate; default: every labelled split but train, without any `val`, the "
        "validation split of the models.",
    )
    batch_size: int = Field(256, ge=1, le=MAX_BATCH, description="Sentences in a batch.")
    group_by: NamesOrNumbers = Field(
        (),
        description="Report subsets by `source` (CoLA's first column); with --pairs, by these fields "
        "(default: text fields with 2 to 100 distinct values).",
    )
    annotations: str | None = Field(
        None, description="Table of grammatical features (0 or 1, with a header) to report subsets by."
    )
    classes: bool = Field(
        False,
        description="Also print metrics and predictions by class, and calibration; --out always writes them.",
    )
    errors: int = Field(
        0, ge=0, le=10**4, description="Sentences to list for each model: those it is most wrong about."
    )
    disagreements: int = Field(
        0,
        ge=0,
        le=10**4,
        description="Sentences to list for each pair of models: those they label differently.",
    )
    ensembles: bool = Field(
        False,
        description="Add a model for each experiment with several seeds or folds: the mean of their logits.",
    )
    pairs_bos: bool = Field(
        True, description="With --pairs, also score the first token, given the end-of-text token."
    )


class PlotSettings(Section):
    """Figures."""

    format: Literal["png", "svg", "pdf"] = Field("png", description="File format.")
    dpi: int = Field(150, ge=30, le=1200, description="Resolution of png files, in dots per inch.")
