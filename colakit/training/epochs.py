"""The steps of epochs over sentences, from any step on: what a resumed run goes on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from colakit.data.batches import Examples, micro_batches
from colakit.runtime.distributed import Processes
from colakit.training.loop import StepBatch

Index = NDArray[np.int64]


def steps_an_epoch(examples: Examples, batch_size: int) -> int:
    """Return the steps that read every sentence once; the last may be short."""
    return -(-len(examples) // batch_size)


def steps(
    examples: Examples,
    *,
    batch_size: int,
    micro_batch_size: int | None,
    seed: int,
    start: int,
    max_steps: int,
    processes: Processes,
    count: Callable[[Index], int] = len,
) -> Iterator[StepBatch]:
    """Yield this process's share of every step after `start`; the order is a function of seed and epoch.

    Args:
        batch_size: sentences a step, over all processes.
        micro_batch_size: sentences a backward pass; None is the whole batch.
        start: steps that were taken before.
        max_steps: steps in all; the last epoch may end early.
        count: terms of the loss in the sentences of a step.
    """
    an_epoch = steps_an_epoch(examples, batch_size)
    for epoch in range(start // an_epoch, -(-max_steps // an_epoch)):
        before = epoch * an_epoch
        plan = examples.plan_epoch(batch_size, seed, epoch)
        done = max(0, start - before)
        for position, index in enumerate(plan[done : max_steps - before], start=done + 1):
            share = micro_batches(
                examples,
                index,
                micro_batch_size or batch_size,
                rank=processes.rank,
                world_size=processes.world_size,
                progress=(before + position) / max_steps,
            )
            yield StepBatch(share, count(index), epoch, f"batch {position} of epoch {epoch + 1}")
