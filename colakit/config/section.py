"""The base class of settings sections, and their field types."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

MAX_SEED = 2**32 - 1  # the maximum of numpy's RandomState, and so of scikit-learn
MAX_COUNT = 10**9  # of steps and the like
MAX_EPOCHS = 10**5
MAX_BATCH = 2**16
MAX_TEXT = 4096  # characters of a path or name
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # in no file name, and not in UTF-8
Share = Annotated[float, Field(ge=0, lt=1)]


def split_commas(value: Any) -> Any:
    """Split a comma-separated text into a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def no_bool(value: Any) -> Any:
    """Refuse a boolean: YAML reads `no` and `on` as booleans, and pydantic turns them into 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"a boolean is not allowed here; quote the value if it is text ({value})")
    return value


def number_to_text(value: Any) -> Any:
    """Return a number as text: YAML reads the names 1 and 1.0 as numbers."""
    return str(value) if type(value) in (int, float) else value


def list_of(value: Any) -> Any:
    """Return a list of one number, or of the parts of a comma-separated text."""
    return split_commas(number_to_text(value))


def _to_names(value: Any) -> Any:
    value = list_of(value)
    return [number_to_text(no_bool(item)) for item in value] if isinstance(value, (list, tuple)) else value


Name = Annotated[str, BeforeValidator(number_to_text)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
NamesOrNumbers = Annotated[tuple[str, ...], BeforeValidator(_to_names)]
Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0), BeforeValidator(no_bool)], ...],
    Field(min_length=1),
    BeforeValidator(list_of),
]


class Section(BaseModel):
    """A section of settings, which refuses unknown keys, infinities, NaN, booleans as numbers, and NUL."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # `--help` needs no validators
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        return value if annotation is bool or bool in get_args(annotation) else no_bool(value)

    @field_validator("*", mode="after")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        values = [value]
        if isinstance(value, (tuple, dict)):
            values = [*value, *(value.values() if isinstance(value, dict) else ())]
        for text in values:
            if isinstance(text, str) and (len(text) > MAX_TEXT or NOT_TEXT.search(text)):
                raise ValueError(f"text must have up to {MAX_TEXT} characters, without NUL and surrogates")
        return value
