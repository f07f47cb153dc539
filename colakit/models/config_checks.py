"""Bounds of model shapes, since a downloaded config file may ask for an arbitrarily large model."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any


def check_shape(config: Any, max_sizes: Mapping[str, int]) -> None:
    """Raise `ValueError` unless the sizes and dropouts of a config have the right type and range.

    Args:
        config: a dataclass; fields ending in `dropout` are probabilities.
        max_sizes: field -> largest size; the smallest is 1.
    """
    for name, bound in max_sizes.items():
        size = getattr(config, name)
        if type(size) is not int or not 1 <= size <= bound:
            got = reprlib.repr(size)[:40]  # plain repr of nested values may be huge
            raise ValueError(f"{name} (={got}) must be a whole number from 1 to {bound:,}")
    for name, value in vars(config).items():
        if name.endswith("dropout") and not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} (={reprlib.repr(value)[:40]}) must be a probability")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
