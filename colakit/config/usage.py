"""How models are used, measured and drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colakit.config.section import Names, Section


class GenerateSettings(Section):
    """How text is continued."""

    max_new_tokens: int = Field(50, ge=1, description="tokens to add")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest token every time")
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest tokens")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample among the likeliest tokens that make up p"
    )
    num_samples: int = Field(1, ge=1, description="continuations")


class PredictSettings(Section):
    """How sentences are labelled."""

    batch_size: int = Field(256, ge=1, description="sentences computed at a time")


class EvaluateSettings(Section):
    """What is compared."""

    splits: Names = Field((), description="splits; by default every labelled one but train")
    batch_size: int = Field(256, ge=1, description="sentences computed at a time")
    group_by: Names = Field(
        (),
        description="what to report apart: `source` (CoLA's first column); of --pairs, fields, by default "
        "those of text with 2 to 100 shared values",
    )
    annotations: str | None = Field(
        None,
        description="table of the sentences' grammatical features (0 or 1, under a header), to report apart",
    )
    pairs_bos: bool = Field(
        True, description="with --pairs, predict the first token too, given the end-of-text token"
    )


class PlotSettings(Section):
    """How figures are drawn."""

    format: Literal["png", "svg", "pdf"] = Field("png", description="file format")
    dpi: int = Field(150, ge=30, le=1200, description="dots an inch, for png")
