"""Learning-rate schedules, as multiples of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_then(
    decay: str, *, warmup_steps: int, max_steps: int, floor: float = 0.0
) -> Callable[[int], float]:
    """Return the multiplier of the peak rate at a step, counted from 0.

    It rises linearly to 1 over `warmup_steps`, then falls to `floor` at `max_steps`.

    Args:
        decay: `linear`, `cosine`, or `constant` for no fall.
        floor: what is left at the end, 0 to 1.
    """

    def lr_at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
        if decay == "constant":
            return 1.0
        left = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * max(0.0, left)

    return lr_at
