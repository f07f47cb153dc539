"""Logits of many sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from colakit.data.batches import Batch, pad, pad_states
from colakit.data.tokens import INFERENCE_BATCH, Tokens, plan_inference
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.rnn.fast_rnn import FastRNN
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.training.objectives import language_modelling

ENOUGH_TOKENS = 400  # in a batch: a CPU multiplies no more of them any sooner a row (docs/performance.md)

Done = Callable[[int], object]
"""Is told how many sentences more are done."""

Rows = Callable[..., Tensor]
"""Maps (input_ids, attention_mask), both (B, T), to a row for each sentence; a GPT takes `states` too."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run with dropout off and no gradients; training mode comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(was_training)


def compute_logits(
    model: nn.Module,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
    states: Tensor | None = None,
) -> NDArray[np.float32]:
    """Return (N, C) fp32 logits of N sentences, in their order.

    Args:
        model: maps (input_ids, attention_mask), both (B, T), to (B, C).
        batch_size: sentences computed at a time; sentences of like length go together.
        states: what `compute_states` has returned, of a `GPTClassifier`, where it is at hand.
    """
    with evaluating(model):
        return logits_by(soonest(model, compute), model, tokens, compute, batch_size, done, states)


def soonest(model: nn.Module, compute: Compute, student_dtype: torch.dtype = torch.float32) -> Rows:
    """Return what computes the logits of `model` soonest, with the weights that it has now.

    On a CPU a student has a way of its own; everything else computes itself.

    Args:
        student_dtype: as `FastRNN` takes it; whatever `compute` multiplies in, a student is measured in fp32.
    """
    if isinstance(model, DistilRNN) and compute.device.type == "cpu":
        return FastRNN(model, student_dtype)
    return model


def logits_by(
    function: Rows,
    model: nn.Module,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
    states: Tensor | None = None,
) -> NDArray[np.float32]:
    """Return what `compute_logits` returns, where the model is evaluating already.

    Args:
        function: `soonest(model, compute)`, kept from call to call.
    """
    batches = _each_batch(function, tokens, compute, batch_size, done, states)
    return _in_order(batches, len(tokens), int(model.num_labels))  # type: ignore[arg-type]


def compute_hidden(
    model: GPTClassifier,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
) -> NDArray[np.float32]:
    """Return the (N, D) fp32 states that the head reads, of N sentences, in their order."""
    with evaluating(model):
        batches = _each_batch(model.pooled, tokens, compute, batch_size, done)
        return _in_order(batches, len(tokens), model.config.width)


def compute_states(
    model: GPTClassifier,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
) -> Tensor:
    """Return (L, D) fp32 on the CPU: what the model's frozen blocks make of the L tokens of N sentences."""
    states = torch.empty(len(tokens.ids), model.config.width)

    def of_tokens(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model.transformer.frozen_states(input_ids)[attention_mask.bool()]

    with evaluating(model):
        for index, found in _each_batch(of_tokens, tokens, compute, batch_size, done):
            parts = found.split(tokens.lengths[index].tolist())
            for sentence, rows in zip(index, parts, strict=True):
                states[tokens.offsets[sentence] : tokens.offsets[sentence + 1]] = rows
    return states


def bits_per_byte(model: GPT, batches: Iterable[tuple[Batch, int]], compute: Compute) -> float:
    """Return the cross-entropy of a text's tokens, in bits, over the bytes that they spell.

    Args:
        batches: each with the bytes of its targets.
    """
    nats, num_bytes = 0.0, 0
    with evaluating(model):
        for batch, size in batches:
            num_bytes += size
            with compute.autocast():
                nats += language_modelling(model, batch.to(compute.device)).total.item()
    return nats / math.log(2) / num_bytes


def _enough(function: Rows, compute: Compute) -> int | None:
    """Return the tokens from which a batch rather ends than be padded; None where padding costs little.

    A GPU waits for launches, and a student for its steps one after another, whatever the batch.
    """
    return None if isinstance(function, FastRNN) or compute.device.type != "cpu" else ENOUGH_TOKENS


def _each_batch(
    function: Rows,
    tokens: Tokens,
    compute: Compute,
    batch_size: int,
    done: Done | None,
    states: Tensor | None = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield the numbers of a batch's sentences and what `function` makes of them, fp32 on the CPU."""
    for index in plan_inference(tokens.lengths, batch_size, _enough(function, compute)):
        input_ids, attention_mask = (tensor.to(compute.device) for tensor in pad(tokens, index))
        known = {} if states is None else {"states": pad_states(states, tokens, index).to(compute.device)}
        with compute.autocast():
            found = function(input_ids, attention_mask, **known)
        yield index, found.float().cpu()
        if done is not None:
            done(len(index))


def _in_order(
    batches: Iterable[tuple[NDArray[np.int64], Tensor]], count: int, width: int
) -> NDArray[np.float32]:
    """Return (N, W): of each of `count` sentences, the row that a batch has for it."""
    rows = np.empty((count, width), dtype=np.float32)
    for index, found in batches:
        rows[index] = found.numpy()
    return rows
