"""The only training loop. It yields a report a step; printing, evaluating and saving are its caller's.

`train` -> `_train_step` -> `_accumulate` -> `_backward`: four altitudes of one loop, the same for
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
from colakit.engine.device import Compute
from colakit.engine.distributed import Processes
from colakit.engine.objectives import Loss, Objective
from colakit.engine.randomness import restore_rng, rng_state
from colakit.errors import EXIT_FAILED, ColakitError, first_line

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
        largest: sentences that a micro-batch may have from here on, where memory has run out, else None.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    count: int
    predictions: list[tuple[Tensor, Tensor]]
    largest: int | None = None


def train(
    model: nn.Module,
    batches: Iterable[StepBatch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    lr_at: Callable[[int], float],
    compute: Compute,
    group: Processes | None = None,
    clip_norm: float | None = 1.0,
    start_step: int = 0,
    largest: int | None = None,
) -> Iterator[StepReport]:
    """Train `model` on every batch of `batches` in turn, yielding after each step.

    Where a GPU's memory runs out, the step begins again with micro-batches of half the size: the same batch,
    and the same bits as if they had been so small from this step on.

    Args:
        model: in the mode and on the device it trains in; `Processes.replicate`d where there are several.
        objective: loss of a micro-batch, summed over its examples.
        optimizer: its groups' `lr` at the start are their peak rates.
        lr_at: multiplier of the peak rates at a step, counted from 0.
        clip_norm: longest gradient, in the 2-norm over all parameters; None does not clip.
        start_step: steps that were taken before, when a run is resumed.
        largest: the last report's `largest`, when a run is resumed.

    Raises:
        ColakitError: if a loss or gradient is not finite, naming step and batch; or if memory runs out with
            a single sentence (or group), or in one of several processes. The step is not taken.
    """
    group = group or Processes()
    for param_group in optimizer.param_groups:
        param_group.setdefault("peak_lr", param_group["lr"])
    for step, batch in enumerate(batches, start=start_step):
        for param_group in optimizer.param_groups:
            param_group["lr"] = param_group["peak_lr"] * lr_at(step)
        report = _train_step(model, batch, objective, optimizer, compute, group, clip_norm, step, largest)
        largest = report.largest
        yield report


def _train_step(
    model: nn.Module,
    batch: StepBatch,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    group: Processes,
    clip_norm: float | None,
    step: int,
    largest: int | None,
) -> StepReport:
    rng = rng_state(compute.device)
    while True:
        optimizer.zero_grad(set_to_none=True)
        try:
            total, predictions = _accumulate(model, batch, objective, compute, group, largest)
            break
        except torch.OutOfMemoryError as error:
            largest = _halved(batch, largest, group, step, error)
        if compute.device.type == "cuda":  # after the handler, whose traceback held the tensors
            torch.cuda.empty_cache()
        restore_rng(rng, compute.device)
    trainable = [p for param_group in optimizer.param_groups for p in param_group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trainable, clip_norm if clip_norm is not None else float("inf"))
    mean_loss = (group.sum(total) / batch.count).item()  # waits for a GPU
    grad_norm = norm.item()
    if not (abs(mean_loss) < float("inf") and grad_norm < float("inf")):
        raise ColakitError(
            f"step {step + 1}: the loss is {mean_loss} and the gradient's norm {grad_norm} on {batch.name}",
            hint=SPOILT_HINT,
            exit_code=EXIT_FAILED,
        )
    optimizer.step()
    lr = optimizer.param_groups[0]["lr"]
    return StepReport(step + 1, batch.epoch, mean_loss, lr, grad_norm, batch.count, predictions, largest)


def _halved(
    batch: StepBatch, largest: int | None, group: Processes, step: int, error: torch.OutOfMemoryError
) -> int:
    """Return the size of micro-batches to go on with, or raise `ColakitError` where there is none."""
    size = max(len(part) for whole in batch.micro_batches for part in whole.split(largest))
    least = batch.micro_batches[0].group
    if size > least and group.world_size == 1:  # the others would wait for the sum that this one broke off
        half = -(-size // 2)
        return max(least, half - half % least)
    raise ColakitError(
        f"step {step + 1}: out of memory with micro-batches of {size} ({first_line(error)})",
        hint="Train with a smaller micro_batch_size, or shorter sentences (max_tokens).",
        exit_code=EXIT_FAILED,
    ) from error


def _accumulate(
    model: nn.Module,
    batch: StepBatch,
    objective: Objective,
    compute: Compute,
    group: Processes,
    largest: int | None,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Add up the gradients of a step; return the summed loss and the predictions."""
    predictions: list[tuple[Tensor, Tensor]] = []
    total = torch.zeros((), device=compute.device)
    micro_batches = [part for whole in batch.micro_batches for part in whole.split(largest)]
    for position, micro_batch in enumerate(micro_batches):
        on_device = micro_batch.to(compute.device)
        is_last = position == len(micro_batches) - 1
        loss = _backward(model, on_device, objective, batch.count, compute, group, is_last)
        total += loss.total.detach() * on_device.weight
        if loss.logits is not None and on_device.labels is not None and on_device.weight:
            predictions.append((loss.logits, on_device.labels))
    return total, predictions


def _backward(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    count: int,
    compute: Compute,
    group: Processes,
    is_last: bool,
) -> Loss:
    """Add this micro-batch's gradient; DDP averages over processes, hence the factor world_size."""
    waits = isinstance(model, DistributedDataParallel) and not is_last
    with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
        with compute.autocast():
            loss = objective(model, batch)
        (loss.total * (batch.weight * group.world_size / count)).backward()
    return loss
