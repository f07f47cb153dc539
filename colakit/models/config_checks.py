"""Bounds of model shapes: a config file that somebody else wrote may ask for a model without end."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any


def check_shape(config: Any, most: Mapping[str, int]) -> None:
    """Raise `ValueError` unless the sizes and dropouts of a config are of their kinds and within bounds.

    Args:
        config: a dataclass; what ends in `dropout` is a probability.
        most: field -> its largest size; the smallest is 1.
    """
    for name, bound in most.items():
        size = getattr(config, name)
        if type(size) is not int or not 1 <= size <= bound:
            got = reprlib.repr(size)[:40]  # of values in one another, repr itself may not end
            raise ValueError(f"{name} (={got}) must be a whole number from 1 to {bound:,}")
    for name, value in vars(config).items():
        if name.endswith("dropout") and not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} (={reprlib.repr(value)[:40]}) must be a probability")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
