"""Learning-rate schedules, as multiples of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_then(
    shape: str, *, warmup_steps: int, max_steps: int, decay: float = 1.0, floor: float = 0.0
) -> Callable[[int], float]:
    """Return the multiplier of the peak rate at a step, counted from 0.

    It rises linearly to 1 over `warmup_steps`, stays there, and falls to `floor` at `max_steps`. With a short
    fall it is the warm-up, stable, decay schedule of Hu et al. 2024 (arXiv:2404.06395).

    Args:
        shape: of the fall: `linear`, `cosine`, or `constant` for none.
        decay: share of the steps after the warm-up, at the end, in which the rate falls.
        floor: multiplier at the end, 0 to 1.
    """

    def lr_at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        falling = max(1, round(decay * (max_steps - warmup_steps)))
        progress = max(0.0, (step - (max_steps - falling)) / falling)
        if shape == "constant":
            return 1.0
        left = 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * max(0.0, left)

    return lr_at
