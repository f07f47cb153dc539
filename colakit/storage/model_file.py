"""What a `ckpt.pt` says beside its tensors, for all who read one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECKPOINT_FORMAT = 2  # the newest that is read; what an older colakit reads too is written as 1
CHECKPOINT_NAME = "ckpt.pt"


def student_name(origin: Mapping[str, Any], cell: str) -> str:
    """Return what to call a student in a table."""
    return f"{origin.get('command', 'adapter')} ({cell})"


def check_facts(facts: Mapping[str, Any], num_labels: int) -> None:
    """Raise `ValueError` unless the plain data beside a model's tensors are of their kinds."""
    names, most, threshold = facts["label_names"], facts["max_tokens"], facts["threshold"]
    is_named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_named or len(names) != num_labels:
        raise ValueError(f"label_names must be {num_labels} names")
    if most is not None and not (type(most) is int and most >= 1):
        raise ValueError("max_tokens must be a whole number from 1, or null")
    if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise ValueError("threshold must be a probability, or null")
    if threshold is not None and num_labels != 2:
        raise ValueError("a threshold decides between two labels")
    if not isinstance(facts["origin"], dict) or not isinstance(facts["origin"].get("command", ""), str):
        raise ValueError("origin must be an object, its command a text")
