"""What every group of settings is made of."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

MAX_SEED = 2**32 - 1  # the most that numpy's older generators, and so scikit-learn, take
Share = Annotated[float, Field(ge=0, lt=1)]


def split_commas(value: Any) -> Any:
    """Take a text of several names apart."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def no_bool(value: Any) -> Any:
    """YAML reads `no` and `on` as booleans, and Python would take those for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"a boolean is not allowed here; quote it if you mean the word ({value})")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0), BeforeValidator(no_bool)], ...],
    Field(min_length=1),
    BeforeValidator(lambda value: split_commas([value] if type(value) is int else value)),
]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, numbers must be finite, and `no` is not a number."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # of the validator, until it is used: `--help` has no use for one
    )

    @field_validator("*", mode="before")
    @classmethod
    def _bool_only_where_wanted(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        return value if annotation is bool or bool in get_args(annotation) else no_bool(value)
