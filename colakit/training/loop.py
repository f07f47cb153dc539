"""The only training loop. It yields a report a step; printing, evaluating and saving are its caller's.

`train` -> `_train_step` -> `_gradients` -> `_backward`: four altitudes of one loop, the same for
classification, distillation and language modelling, which differ in their objective alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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

SPOILT_HINT = (
    "Resuming would meet it again: start anew in another folder, with a lower --lr or --precision fp32."
)


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step learns from.

    Attributes:
        micro_batches: this process's share, one backward pass each.
        count: terms of the loss in all processes' shares together: sentences, or tokens for LM.
        epoch: from 0.
        name: what to call the batch in an error.
    """

    micro_batches: list[Batch]
    count: int
    epoch: int
    name: str


@dataclass(frozen=True)
class StepReport:
    """What happened in one optimizer step.

    Attributes:
        step: optimizer steps so far, this one included.
        epoch: from 0.
        loss: mean over the global batch.
        lr: rate of the first parameter group in this step.
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
class Learning:
    """What every step of a training has in common; `train` explains it."""

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
    """Train `model` on every batch of `batches` in turn, yielding after each step.

    Where a GPU's memory runs out, the step begins again with micro-batches of half the size: the same batch,
    and the same bits as if they had been so small from this step on.

    Args:
        model: in the mode and on the device it trains in; `Processes.replicate`d where there are several.
        objective: loss of a micro-batch, summed over its examples.
        optimizer: its groups' `lr` at the start are their peak rates.
        lr_at: multiplier of the peak rates at a step, counted from 0.
        max_grad_norm: longest gradient, in the 2-norm over all parameters; None does not clip.
        start_step: steps that were taken before, when a run is resumed.
        max_micro_batch_size: the last report's `max_micro_batch_size`, when a run is resumed.
        graphs: take over whole batches, one micro-batch each, as far as memory suffices.

    Raises:
        ColakitError: if a loss or gradient is not finite, naming step and batch; or if memory runs out with
            a single sentence (or group), or in one of several processes. The step is not taken.
    """
    learning = Learning(model, objective, optimizer, compute, group or Processes(), max_grad_norm)
    for param_group in optimizer.param_groups:
        param_group.setdefault("peak_lr", param_group["lr"])
    for step, batch in enumerate(batches, start=start_step):
        for param_group in optimizer.param_groups:
            param_group["lr"] = param_group["peak_lr"] * lr_at(step)
        report = _train_step(learning, batch, step, max_micro_batch_size, graphs)
        max_micro_batch_size = report.max_micro_batch_size
        yield report


def _train_step(
    learning: Learning,
    batch: StepBatch,
    step: int,
    max_micro_batch_size: int | None,
    graphs: StepGraphs | None,
) -> StepReport:
    found = None
    if graphs is not None and max_micro_batch_size is None and len(batch.micro_batches) == 1:
        (whole,) = batch.micro_batches
        found = graphs.gradients(whole, lambda static: _gradients(learning, [static], batch.count))
    if found is None:
        found, max_micro_batch_size = _gradients_that_fit(learning, batch, step, max_micro_batch_size)
    mean_loss = (learning.group.sum(found.total) / batch.count).item()  # waits for a GPU
    grad_norm = found.norm.item()
    if not (abs(mean_loss) < float("inf") and grad_norm < float("inf")):
        raise ColakitError(
            f"step {step + 1}: the loss is {mean_loss} and the gradient's norm {grad_norm} on {batch.name}",
            hint=SPOILT_HINT,
            exit_code=EXIT_FAILED,
        )
    learning.optimizer.step()
    lr = learning.optimizer.param_groups[0]["lr"]
    return StepReport(
        step + 1, batch.epoch, mean_loss, lr, grad_norm, batch.count, found.predictions, max_micro_batch_size
    )


def _gradients_that_fit(
    learning: Learning, batch: StepBatch, step: int, max_micro_batch_size: int | None
) -> tuple[Gradients, int | None]:
    """Return the step's gradients, and the size of micro-batches with which memory sufficed for them."""
    device = learning.compute.device
    rng = rng_state(device)
    while True:
        micro_batches = [part for whole in batch.micro_batches for part in whole.split(max_micro_batch_size)]
        try:
            return _gradients(learning, micro_batches, batch.count), max_micro_batch_size
        except torch.OutOfMemoryError as error:
            max_micro_batch_size = _halved(micro_batches, learning.group, step, error)
        if device.type == "cuda":  # after the handler, whose traceback held the tensors
            torch.cuda.empty_cache()
        restore_rng(rng, device)


def _halved(micro_batches: list[Batch], group: Processes, step: int, error: torch.OutOfMemoryError) -> int:
    """Return the size of micro-batches to go on with, or raise `ColakitError` where there is none."""
    size, least = max(map(len, micro_batches)), micro_batches[0].unit
    if size > least and group.world_size == 1:  # the others would wait for the sum that this one broke off
        half = -(-size // 2)
        return max(least, half - half % least)
    raise ColakitError(
        f"step {step + 1}: out of memory with micro-batches of {size} ({first_line(error)})",
        hint="Train with a smaller micro_batch_size, or shorter sentences (max_tokens).",
        exit_code=EXIT_FAILED,
    ) from error


def _gradients(learning: Learning, micro_batches: list[Batch], count: int) -> Gradients:
    """Add up the gradients of a step, and clip them."""
    learning.optimizer.zero_grad(set_to_none=True)
    predictions: list[tuple[Tensor, Tensor]] = []
    total = torch.zeros((), device=learning.compute.device)
    for position, micro_batch in enumerate(micro_batches, start=1):
        on_device = micro_batch.to(learning.compute.device)
        loss = _backward(learning, on_device, count, is_last=position == len(micro_batches))
        total += loss.total.detach() * on_device.weight
        if loss.logits is not None and on_device.labels is not None and on_device.weight:
            predictions.append((loss.logits, on_device.labels))
    trainable = [p for param_group in learning.optimizer.param_groups for p in param_group["params"]]
    longest = learning.max_grad_norm if learning.max_grad_norm is not None else float("inf")
    return Gradients(total, torch.nn.utils.clip_grad_norm_(trainable, longest), predictions)


def _backward(learning: Learning, batch: Batch, count: int, *, is_last: bool) -> Loss:
    """Add this micro-batch's gradient; DDP averages over processes, hence the factor world_size."""
    model = learning.model
    waits = isinstance(model, DistributedDataParallel) and not is_last
    with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
        with learning.compute.autocast():
            loss = learning.objective(model, batch)
        (loss.total * (batch.weight * learning.group.world_size / count)).backward()
    return loss
