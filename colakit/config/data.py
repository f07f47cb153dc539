"""Settings of the dataset."""

from __future__ import annotations

import codecs
from typing import Literal

from pydantic import Field, field_validator

from colakit.config.section import MAX_SEED, Name, Names, NamesOrNumbers, Section


class DataSettings(Section):
    """The dataset."""

    path: str = Field(
        "cola",
        description="Dataset: `cola` (downloaded once), `builtin` (generated), a zip, a folder, a table "
        "(TSV, CSV, JSON, Parquet; also .gz, .xz, .zst), `hf:NAME` or `hf:NAME/CONFIG`.",
    )
    splits: dict[str, str] = Field(
        {}, description="Split name -> file of a table, or `hf:NAME/CONFIG:SPLIT`, instead of `path`."
    )
    text_column: Name | None = Field(
        None, description="Column of the text; required for a table with a header."
    )
    label_column: Name | None = Field(None, description="Column of the label; up to 1,000 classes.")
    label_names: NamesOrNumbers = Field(
        (), description="Labels in order of their index; default: the sorted labels of train."
    )
    split_column: Name | None = Field(
        "split", description="Column that cuts a single table into splits, if it has this column."
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Character between columns; null: tab, or for .csv the one of `,` `;` tab `|` that the "
        "header shows.",
    )
    quoting: Literal["auto", "minimal", "none"] = Field(
        "auto",
        description="minimal: double quotes enclose cells, as pandas reads them; none: quotes are text; "
        "auto: none for the layouts of CoLA, GLUE and Kaggle, minimal for other tables.",
    )
    encoding: str = Field("utf-8", description="Encoding of tables of text, such as utf-16 or cp1252.")
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

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        try:
            is_text = codecs.lookup(value)._is_text_encoding
        except LookupError:
            is_text = False
        if not is_text:
            raise ValueError("not an encoding of text that Python knows, such as utf-8, utf-16 or cp1252")
        return value

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value in ('"', "\r", "\n"):
            raise ValueError("a double quote or a line end cannot be the delimiter")
        return value
