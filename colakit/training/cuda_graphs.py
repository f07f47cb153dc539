"""Forward and backward pass of a step as a CUDA graph.

With short sentences, launching a step's kernels from Python takes longer than the GPU needs to run them. A
graph is recorded once per batch shape and then replayed. Batches are padded to few shapes, which changes no
loss: attention is causal and padding is on the right.

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
TOLERANCE = 1e-2  # relative, of a replayed loss and norm; another order of summation stays far below


class Gradients(NamedTuple):
    """Result of a step's backward pass, besides the parameters' clipped `grad`.

    Attributes:
        total: (), loss summed over the step's examples.
        norm: (), gradient norm before clipping.
        predictions: ((B, C) logits, (B,) labels) of micro-batches, detached, on the device.
    """

    total: Tensor
    norm: Tensor
    predictions: list[tuple[Tensor, Tensor]]


Pass = Callable[[Batch], Gradients]
"""Forward and backward pass over a batch on the device, without a sync point."""
Replay = Callable[[], object]


class Recorder(Protocol):
    """Records work on the device as a graph."""

    def rehearse(self, work: Callable[[], Gradients]) -> Gradients:
        """Run the work eagerly, so that libraries initialise before the recording."""

    def record(self, work: Callable[[], Gradients]) -> tuple[Gradients, Replay]:
        """Record the work without running it; return its result tensors and a function that replays it."""


class CudaRecorder:
    """Records CUDA graphs in one memory pool; no two may be replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def rehearse(self, work: Callable[[], Gradients]) -> Gradients:
        """Run the work on the recording stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = work()
        current.wait_stream(self.stream)
        return results

    def record(self, work: Callable[[], Gradients]) -> tuple[Gradients, Replay]:
        """Record the work, without running it."""
        graph = torch.cuda.CUDAGraph()
        # the outer context restores the current stream even if recording fails
        outer = torch.cuda.stream(torch.cuda.current_stream(self.device))
        with outer, torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            results = work()
        return results, graph.replay


@dataclass(frozen=True)
class Recorded:
    """Graph of one batch shape, and the tensors at fixed addresses that it reads and writes."""

    batch: Batch
    results: Gradients
    grads: list[Tensor | None]
    replay: Replay

    def run(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Replay the graph on a batch of its shape, and set the parameters' gradients."""
        for name, tensor in batch.tensors().items():
            getattr(self.batch, name).copy_(tensor, non_blocking=True)
        self.replay()
        for parameter, grad in zip(parameters, self.grads, strict=True):
            parameter.grad = grad
        total, norm, predictions = self.results
        return Gradients(total, norm, [(logits.clone(), labels.clone()) for logits, labels in predictions])


class StepGraphs:
    """Graphs of a training run, recorded at the first batch of each shape.

    A new graph is compared with the eager pass. If it differs or recording fails, graphs are disabled for
    the rest of the run; `failure` is the reason.

    Args:
        parameters: the trainable parameters.
        batch_size: B of the batches to record; others, such as an epoch's last, run eagerly.
        widest: largest T to pad to.
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
        """Return `plain(batch)` by replaying a graph; None without a graph: the caller then runs `plain`.

        A replay uses the `Batch.progress` of the recording.
        """
        if self.failure is not None or len(batch) != self.batch_size or batch.weight != 1:
            return None
        tokens = batch.input_ids.shape[1]
        width = max(tokens, min(-(-tokens // WIDTH) * WIDTH, self.widest))
        batch = batch.with_width(width)
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

    def _record(self, batch: Batch, plain: Pass, rng: dict[str, Any]) -> Recorded:
        """Record a graph and replay it once; raise `RuntimeError` if replay and eager pass differ."""
        copies: dict[str, Any] = {n: tensor.to(self.device).clone() for n, tensor in batch.tensors().items()}
        static = replace(batch, **copies)
        eager = self.recorder.rehearse(lambda: plain(static))
        restore_rng(rng, self.device)
        for parameter in self.parameters:
            parameter.grad = None  # freed before, not while recording
        results, replay = self.recorder.record(lambda: plain(static))
        recorded = Recorded(static, results, [parameter.grad for parameter in self.parameters], replay)
        restore_rng(rng, self.device)
        replayed = recorded.run(batch, self.parameters)
        for name, got, expected in (
            ("loss", replayed.total, eager.total),
            ("norm", replayed.norm, eager.norm),
        ):
            if not torch.isclose(got, expected, rtol=TOLERANCE, equal_nan=True):
                raise RuntimeError(
                    f"replayed {name} is {got.item():.6g}; eager {name} is {expected.item():.6g}"
                )
        return recorded
