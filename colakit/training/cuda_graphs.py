"""Forward and backward pass of a step as a CUDA graph: a GPU is handed one thing, not a thousand kernels.

A GPU has multiplied a batch of short sentences long before Python has launched the kernels for it. A graph is
recorded once for each shape of batch and replayed from then on. Batches are padded to few shapes, which
changes no loss: attention is causal and padding stands on the right.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from colakit.data.batches import Batch
from colakit.errors import first_line
from colakit.runtime.seeding import restore_rng, rng_state

WIDTH = 8  # tokens; batches are padded to a multiple of it
TOLERANCE = 1e-2  # relative, of a replayed loss and norm: sums in another order stay below, faults do not


class Gradients(NamedTuple):
    """What a step's backward pass leaves behind, besides the parameters' `grad`, clipped.

    Attributes:
        total: (), the loss summed over the step's examples.
        norm: (), of the gradient, before clipping.
        predictions: ((B, C) logits, (B,) labels) of micro-batches, detached, on the device.
    """

    total: Tensor
    norm: Tensor
    predictions: list[tuple[Tensor, Tensor]]


Pass = Callable[[Batch], Gradients]
"""Forward and backward pass over a batch on the device, without ever waiting for it."""
Replay = Callable[[], object]


class Recorder(Protocol):
    """What makes a graph of work on the device."""

    def rehearse(self, work: Callable[[], Gradients]) -> Gradients:
        """Do the work as it is, where it will be recorded: libraries set themselves up on the first call."""

    def record(self, work: Callable[[], Gradients]) -> tuple[Gradients, Replay]:
        """Return the tensors that hold the work's results whenever it has been replayed, and what replays."""


class CudaRecorder:
    """Records CUDA graphs that share their memory: no two are replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def rehearse(self, work: Callable[[], Gradients]) -> Gradients:
        """Do the work on the stream that it will be recorded on."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            done = work()
        current.wait_stream(self.stream)
        return done

    def record(self, work: Callable[[], Gradients]) -> tuple[Gradients, Replay]:
        """Record the work, which is not done yet then."""
        graph = torch.cuda.CUDAGraph()
        # the outer session goes back to the current stream even where recording breaks off
        outer = torch.cuda.stream(torch.cuda.current_stream(self.device))
        with outer, torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            results = work()
        return results, graph.replay


@dataclass(frozen=True)
class Recorded:
    """One shape's graph: the tensors that it reads and writes, which stay where they are."""

    batch: Batch
    results: Gradients
    grads: list[Tensor | None]
    replay: Replay

    def run(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Replay the graph on another batch of its shape, and give the parameters its gradients."""
        for name, tensor in batch.tensors().items():
            getattr(self.batch, name).copy_(tensor, non_blocking=True)
        self.replay()
        for parameter, grad in zip(parameters, self.grads, strict=True):
            parameter.grad = grad
        total, norm, predictions = self.results
        return Gradients(total, norm, [(logits.clone(), labels.clone()) for logits, labels in predictions])


class StepGraphs:
    """The graphs of a training, recorded as its batches come.

    Each is compared with the plain pass when it is recorded. Where one differs, or cannot be recorded, none
    is used from then on; `failure` says why.

    Args:
        parameters: those that train.
        batch_size: B of the batches that are worth a graph; others, such as an epoch's last, have none.
        widest: T that no batch is padded beyond.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        *,
        batch_size: int,
        widest: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.parameters, self.device, self.batch_size, self.widest = parameters, device, batch_size, widest
        self.recorder = recorder or CudaRecorder(device)
        self.recorded: dict[int, Recorded] = {}  # T -> graph
        self.failure: str | None = None

    def gradients(self, batch: Batch, plain: Pass) -> Gradients | None:
        """Return what `plain` would, from the graph of the batch's shape, recorded now if it is the first.

        None where there is none: the plain pass is to be taken then. `Batch.progress` is what it was when the
        graph was recorded.
        """
        if self.failure is not None or len(batch) != self.batch_size or batch.weight != 1:
            return None
        batch = self._widened(batch)
        width = batch.input_ids.shape[1]
        if width not in self.recorded:
            rng = rng_state(self.device)
            try:
                self.recorded[width] = self._record(batch, plain, rng)
            except RuntimeError as error:  # out of memory, or an operation that waits for the device
                self.failure = first_line(error)
                self.recorded.clear()
                return None
            finally:
                restore_rng(rng, self.device)
        return self.recorded[width].run(batch, self.parameters)

    def _widened(self, batch: Batch) -> Batch:
        tokens = batch.input_ids.shape[1]
        return batch.with_width(max(tokens, min(-(-tokens // WIDTH) * WIDTH, self.widest)))

    def _record(self, batch: Batch, plain: Pass, rng: dict[str, Any]) -> Recorded:
        """Record a graph and replay it once; raise `RuntimeError` if it does not do what it recorded."""
        placed: dict[str, Any] = {n: tensor.to(self.device).clone() for n, tensor in batch.tensors().items()}
        static = replace(batch, **placed)
        wanted = self.recorder.rehearse(lambda: plain(static))
        restore_rng(rng, self.device)
        for parameter in self.parameters:
            parameter.grad = None  # freed before, not while recording
        results, replay = self.recorder.record(lambda: plain(static))
        recorded = Recorded(static, results, [parameter.grad for parameter in self.parameters], replay)
        restore_rng(rng, self.device)
        found = recorded.run(batch, self.parameters)
        for what, ours, theirs in (("loss", found.total, wanted.total), ("norm", found.norm, wanted.norm)):
            if not torch.isclose(ours, theirs, rtol=TOLERANCE, equal_nan=True):
                raise RuntimeError(f"a replayed {what} is {ours.item():.6g}, a plain one {theirs.item():.6g}")
        return recorded
