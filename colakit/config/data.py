"""What is learnt from."""

from __future__ import annotations

from pydantic import Field

from colakit.config.section import MAX_SEED, Names, Section


class DataSettings(Section):
    """What is learnt from."""

    path: str = Field(
        "cola", description="`cola` (fetched once), `builtin` (made here), or a zip, folder, TSV or CSV"
    )
    splits: dict[str, str] = Field(
        {}, description="split name -> file, instead of `path`, for a task of your own"
    )
    text_column: str | None = Field(None, description="column of the text; needed for a table with a header")
    label_column: str | None = Field(None, description="column of the label, of any number of classes")
    label_names: Names = Field((), description="labels in order; by default what train holds, sorted")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of train held out to choose epoch and threshold"
    )
    val_seed: int = Field(
        0, ge=0, le=MAX_SEED, description="draw of that slice; the same for every run that is compared"
    )
    max_tokens: int | None = Field(
        None, ge=3, description="longest sentence in tokens; null is the model's own limit"
    )
    mirrors: Names = Field((), description="URLs of CoLA's zip, tried before the CoLA site")
