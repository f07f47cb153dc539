"""Several processes under torchrun, each with a share of every global batch.

Collectives run on the CPU through gloo, on GPUs through NCCL. Without torchrun everything here is a no-op.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colakit.runtime.device import Compute

TIMEOUT = timedelta(minutes=10)  # longest that one process waits for another, evaluation included

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together.

    Attributes:
        rank: its number, from 0; the one with rank 0 evaluates, writes and speaks.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def replicate(self, model: nn.Module, compute: Compute) -> nn.Module:
        """Return `model`, wrapped to add up gradients over the processes where there are several."""
        if self.world_size == 1:
            return model
        ids = [compute.device.index] if compute.device.type == "cuda" else None
        with warnings.catch_warnings():  # newer releases of torch call the flag by another name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)  # none changes

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def max(self, value: float) -> float:
        """Return the largest of the processes' values."""
        return max(self.all_gather(value))

    def all_gather(self, value: Plain) -> list[Plain]:
        """Return every process's `value`, plain data or CPU tensors, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Plain) -> Plain:
        """Return the main process's `value`, plain data, to all."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


def local_rank() -> int | None:
    """Return this process's number on its machine under torchrun, else None."""
    value = os.environ.get("LOCAL_RANK")
    return int(value) if value is not None and "WORLD_SIZE" in os.environ else None


@contextmanager
def processes(compute: Compute) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if local_rank() is not None else 1
    if world_size == 1:
        yield Processes()
        return
    # It keeps the group that is there when it is imported, and DDP and the optimizers import it: imported
    # once one is there, it would let the group's threads outlive the interpreter, which they then may abort.
    importlib.import_module("torch.distributed.nn")
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(compute.device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
