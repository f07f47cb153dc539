"""Batches of the optimizer steps, in an order that depends on seed and epoch only; starts at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from colakit.config.training import LoopSettings
from colakit.data.batches import Examples, micro_batches
from colakit.runtime.distributed import Processes
from colakit.training.loop import StepBatch


def steps_per_epoch(examples: Examples, batch_size: int) -> int:
    """Return the optimizer steps that read every sentence once; the last batch may be smaller."""
    return -(-len(examples) // batch_size)


def steps(
    examples: Examples,
    settings: LoopSettings,
    *,
    seed: int,
    start: int,
    max_steps: int,
    processes: Processes,
    count: Callable[[NDArray[np.int64]], int] = len,
) -> Iterator[StepBatch]:
    """Yield this process's share of every step after `start`.

    Args:
        settings: batch sizes.
        start: completed steps.
        max_steps: steps in total; the last epoch may be incomplete.
        count: returns the terms of the loss in the sentences of a step.
    """
    batch_size = settings.batch_size
    per_epoch = steps_per_epoch(examples, batch_size)
    for epoch in range(start // per_epoch, -(-max_steps // per_epoch)):
        earlier = epoch * per_epoch
        plan = examples.plan_epoch(batch_size, seed, epoch)
        done = max(0, start - earlier)
        for position, index in enumerate(plan[done : max_steps - earlier], start=done + 1):
            share = micro_batches(
                examples,
                index,
                settings.micro_batch_size or batch_size,
                rank=processes.rank,
                world_size=processes.world_size,
                progress=(earlier + position) / max_steps,
            )
            yield StepBatch(share, count(index), epoch, f"batch {position} of epoch {epoch + 1}")
