"""The training loop: yields one report per optimizer step; logging, evaluation and saving are the caller's.

Levels: `train` (one step per batch) -> `_gradients` (micro-batches, clipping) -> `_forward_backward` (one
micro-batch). Classification, distillation and language modelling differ only in the objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colakit.data.batches import Batch
from colakit.errors import EXIT_FAILED, ColakitError, first_line
from colakit.runtime.device import Compute
from colakit.runtime.distributed import Processes
from colakit.runtime.seeding import restore_rng, rng_state
from colakit.training.cuda_graphs import Gradients, StepGraphs
from colakit.training.objectives import Loss, Objective

NOT_FINITE_HINT = (
    "Resuming repeats this step. Start a new run in another folder with a lower --lr or --precision fp32."
)


@dataclass(frozen=True)
class StepBatch:
    """Input of one optimizer step.

    Attributes:
        micro_batches: this process's share, one backward pass each.
        count: terms of the loss over all processes: sentences, or tokens for a language model.
        epoch: from 0.
        name: for error messages.
    """

    micro_batches: list[Batch]
    count: int
    epoch: int
    name: str


@dataclass(frozen=True)
class StepReport:
    """Result of one optimizer step.

    Attributes:
        step: optimizer steps so far, this one included.
        epoch: from 0.
        loss: mean over the global batch.
        lr: learning rate of the first parameter group in this step.
        grad_norm: before clipping.
        count: terms of the loss, as in `StepBatch`.
        predictions: (logits, labels) of this process's micro-batches, detached, on the device.
        max_micro_batch_size: limit on sentences per micro-batch after running out of memory, else None.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    count: int
    predictions: list[tuple[Tensor, Tensor]]
    max_micro_batch_size: int | None = None


@dataclass(frozen=True)
class _Setup:
    """Arguments of `train` that are the same for every step."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    compute: Compute
    group: Processes
    max_grad_norm: float | None


def train(
    model: nn.Module,
    batches: Iterable[StepBatch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    lr_at: Callable[[int], float],
    compute: Compute,
    group: Processes | None = None,
    max_grad_norm: float | None = 1.0,
    start_step: int = 0,
    max_micro_batch_size: int | None = None,
    graphs: StepGraphs | None = None,
) -> Iterator[StepReport]:
    """Train `model` on the batches in order, yielding after each optimizer step.

    When a GPU runs out of memory, the step is repeated with micro-batches of half the size. The global batch
    stays the same, and so do the results of a run whose micro-batches had this size from that step on.

    Args:
        model: in training mode, on its device; `Processes.replicate`d if there are several processes.
        objective: loss of a micro-batch, summed over its examples.
        optimizer: the initial `lr` of its groups are their peak learning rates.
        lr_at: multiplier of the peak learning rates at a step, counted from 0.
        max_grad_norm: gradients are clipped to this 2-norm over all parameters; None disables clipping.
        start_step: completed steps of a resumed run.
        max_micro_batch_size: value of the last report of a resumed run.
        graphs: CUDA graphs for batches of one micro-batch, as long as memory suffices.

    Raises:
        ColakitError: if a loss or gradient is not finite (names step and batch), or if memory runs out with
            micro-batches of one sentence (or pair) or with several processes. The step is not taken.
    """
    group = group or Processes()
    setup = _Setup(model, objective, optimizer, compute, group, max_grad_norm)
    for param_group in optimizer.param_groups:
        param_group.setdefault("peak_lr", param_group["lr"])
    for step, batch in enumerate(batches, start=start_step):
        for param_group in optimizer.param_groups:
            param_group["lr"] = param_group["peak_lr"] * lr_at(step)
        gradients = None
        if graphs is not None and max_micro_batch_size is None and len(batch.micro_batches) == 1:
            gradients = graphs.gradients(batch.micro_batches[0], partial(_gradients, setup, batch.count))
        if gradients is None:
            gradients, max_micro_batch_size = _gradients_in_memory(setup, batch, step, max_micro_batch_size)
        loss = (group.sum(gradients.total) / batch.count).item()  # synchronises with the device
        grad_norm = gradients.norm.item()
        if not (abs(loss) < float("inf") and grad_norm < float("inf")):
            raise ColakitError(
                f"step {step + 1}: loss {loss} and gradient norm {grad_norm} on {batch.name}",
                hint=NOT_FINITE_HINT,
                exit_code=EXIT_FAILED,
            )
        optimizer.step()
        lr, predictions = optimizer.param_groups[0]["lr"], gradients.predictions
        yield StepReport(
            step + 1, batch.epoch, loss, lr, grad_norm, batch.count, predictions, max_micro_batch_size
        )


def _gradients_in_memory(
    setup: _Setup, batch: StepBatch, step: int, max_micro_batch_size: int | None
) -> tuple[Gradients, int | None]:
    """Return the gradients of a step and the limit on micro-batches with which they fit into memory."""
    device = setup.compute.device
    rng = rng_state(device)
    while True:
        micro_batches = [part for whole in batch.micro_batches for part in whole.split(max_micro_batch_size)]
        try:
            return _gradients(setup, batch.count, *micro_batches), max_micro_batch_size
        except torch.OutOfMemoryError as error:
            max_micro_batch_size = _half_size(micro_batches, setup.group, step, error)
        if device.type == "cuda":  # outside the handler, whose traceback references the tensors
            torch.cuda.empty_cache()
        restore_rng(rng, device)


def _half_size(micro_batches: list[Batch], group: Processes, step: int, error: torch.OutOfMemoryError) -> int:
    """Return half the current micro-batch size; raise `ColakitError` if it cannot be halved."""
    size, least = max(map(len, micro_batches)), micro_batches[0].unit
    if size > least and group.world_size == 1:  # other processes would wait for an all-reduce that never ends
        half = -(-size // 2)
        return max(least, half - half % least)
    raise ColakitError(
        f"step {step + 1}: out of memory with micro-batches of {size} ({first_line(error)})",
        hint="Use a smaller micro_batch_size or shorter sentences (max_tokens).",
        exit_code=EXIT_FAILED,
    ) from error


def _gradients(setup: _Setup, count: int, *micro_batches: Batch) -> Gradients:
    """Accumulate and clip the gradients of a step."""
    setup.optimizer.zero_grad(set_to_none=True)
    predictions: list[tuple[Tensor, Tensor]] = []
    total = torch.zeros((), device=setup.compute.device)
    for position, micro_batch in enumerate(micro_batches, start=1):
        batch = micro_batch.to(setup.compute.device)
        loss = _forward_backward(setup, batch, count, is_last=position == len(micro_batches))
        total += loss.total.detach() * batch.weight
        if loss.logits is not None and batch.labels is not None and batch.weight:
            predictions.append((loss.logits, batch.labels))
    parameters = [p for param_group in setup.optimizer.param_groups for p in param_group["params"]]
    max_norm = setup.max_grad_norm if setup.max_grad_norm is not None else float("inf")
    return Gradients(total, torch.nn.utils.clip_grad_norm_(parameters, max_norm), predictions)


def _forward_backward(setup: _Setup, batch: Batch, count: int, *, is_last: bool) -> Loss:
    """Add the gradient of a micro-batch. The factor world_size undoes DDP's average over processes."""
    model = setup.model
    accumulates = isinstance(model, DistributedDataParallel) and not is_last
    with model.no_sync() if accumulates else contextlib.nullcontext():  # type: ignore[operator]
        with setup.compute.autocast():
            loss = setup.objective(model, batch)
        (loss.total * (batch.weight * setup.group.world_size / count)).backward()
    return loss
