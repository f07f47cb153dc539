"""Data-parallel processes under torchrun: gloo on CPUs, NCCL on GPUs; no-ops in a single process."""

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

TIMEOUT = timedelta(minutes=10)  # of a collective; covers evaluation on the main process

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Processes:
    """Rank and size of the process group.

    Attributes:
        rank: from 0; rank 0 evaluates, writes files and prints.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def replicate(self, model: nn.Module, compute: Compute) -> nn.Module:
        """Return `model`, wrapped in DistributedDataParallel if there are several processes."""
        if self.world_size == 1:
            return model
        ids = [compute.device.index] if compute.device.type == "cuda" else None
        with warnings.catch_warnings():  # newer torch releases rename the flag
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)  # constant

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def max(self, value: float) -> float:
        """Return the maximum of `value` over the processes."""
        return max(self.all_gather(value))

    def all_gather(self, value: Plain) -> list[Plain]:
        """Return every process's `value` (plain data or CPU tensors) in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Plain) -> Plain:
        """Return the `value` (plain data) of rank 0 in every process."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def local_rank() -> int | None:
    """Return LOCAL_RANK under torchrun, else None."""
    value = os.environ.get("LOCAL_RANK")
    return int(value) if value is not None and "WORLD_SIZE" in os.environ else None


@contextmanager
def processes(compute: Compute) -> Iterator[Processes]:
    """Initialise the process group of torchrun for the block."""
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if local_rank() is not None else 1
    if world_size == 1:
        yield Processes()
        return
    # torch.distributed.nn keeps a reference to the group that exists when it is first imported (by DDP or an
    # optimizer). Its threads would then outlive the interpreter and may abort it, so import it before.
    importlib.import_module("torch.distributed.nn")
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(compute.device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
