"""Settings of the dataset."""

from __future__ import annotations

from pydantic import Field

from colakit.config.section import MAX_SEED, Names, Section


class DataSettings(Section):
    """The dataset."""

    path: str = Field(
        "cola",
        description="Dataset: `cola` (downloaded once), `builtin` (generated), or a zip, folder, TSV or CSV.",
    )
    splits: dict[str, str] = Field({}, description="Split name -> file, instead of `path`.")
    text_column: str | None = Field(
        None, description="Column of the text; required for a table with a header."
    )
    label_column: str | None = Field(None, description="Column of the label; up to 1,000 classes.")
    label_names: Names = Field(
        (), description="Labels in order of their index; default: the sorted labels of train."
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Fraction of train held out as the validation split, for model selection and threshold.",
    )
    val_seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        description="Random seed of the validation split; runs to be compared must share it.",
    )
    max_tokens: int | None = Field(
        None, ge=3, le=2**20, description="Maximum sentence length in tokens; null: the model's maximum."
    )
    mirrors: Names = Field((), description="URLs of CoLA's zip, tried before the CoLA site.")
