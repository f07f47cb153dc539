"""Logits and hidden states of many sentences, computed in batches of similar length.

Shapes: N sentences, B batch, T tokens, L tokens in all sentences, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from colakit.data.batches import Batch, pad, pad_states
from colakit.data.tokens import INFERENCE_BATCH, Tokens, plan_inference
from colakit.kernels.linear_cross_entropy import IGNORE_INDEX
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.rnn.fast_rnn import FastRNN
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute

MAX_CPU_BATCH_TOKENS = 400  # larger CPU batches are no faster per row (docs/performance.md)

Done = Callable[[int], object]
"""Progress callback; receives the number of sentences in each finished batch."""

Forward = Callable[..., Tensor]
"""Maps (input_ids, attention_mask), both (B, T), to a row per sentence; a GPT's also takes `states`."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch to evaluation mode without gradients; restore training mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(was_training)


def fastest_forward(
    model: nn.Module, compute: Compute, student_dtype: torch.dtype = torch.float32
) -> Forward:
    """Return `FastRNN` (with products in `student_dtype`) for a student on a CPU, else the model."""
    if isinstance(model, DistilRNN) and compute.device.type == "cpu":
        return FastRNN(model, student_dtype)
    return model


def compute_logits(
    model: nn.Module,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
    states: Tensor | None = None,
) -> NDArray[np.float32]:
    """Return (N, C) logits of N sentences.

    Args:
        model: maps (input_ids, attention_mask), both (B, T), to (B, C).
        states: output of `compute_states`, which a `GPTClassifier` uses instead of its frozen blocks.
    """
    with evaluating(model):
        forward, width = fastest_forward(model, compute), int(model.num_labels)  # type: ignore[arg-type]
        return compute_rows(forward, width, tokens, compute, batch_size, done, states)


def compute_hidden(
    model: GPTClassifier, tokens: Tokens, compute: Compute, done: Done | None = None
) -> NDArray[np.float32]:
    """Return the (N, D) hidden states that the classification head reads."""
    with evaluating(model):
        return compute_rows(model.pooled, model.config.width, tokens, compute, done=done)


def compute_states(
    model: GPTClassifier,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
) -> Tensor:
    """Return the (L, D) fp32 output of the model's leading frozen blocks, on the CPU."""
    states = torch.empty(len(tokens.ids), model.config.width)

    def unpadded_states(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model.body.frozen_states(input_ids)[attention_mask.bool()]

    with evaluating(model):
        for index, batch_states in map_batches(unpadded_states, tokens, compute, batch_size, done):
            per_sentence = batch_states.split(tokens.lengths[index].tolist())
            for sentence, rows in zip(index, per_sentence, strict=True):
                states[tokens.offsets[sentence] : tokens.offsets[sentence + 1]] = rows
    return states


def bits_per_byte(model: GPT, batches: Iterable[tuple[Batch, int]], compute: Compute) -> float:
    """Return a text's cross-entropy in bits, divided by its length in bytes.

    Args:
        batches: each with the number of bytes of its target tokens.
    """
    nll, num_bytes = 0.0, 0
    with evaluating(model):
        for batch, size in batches:
            batch = batch.to(compute.device)
            targets = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORE_INDEX)
            with compute.autocast():
                nll += model(batch.input_ids[:, :-1], targets=targets).item()
            num_bytes += size
    return nll / math.log(2) / num_bytes


def map_batches(
    forward: Forward,
    tokens: Tokens,
    compute: Compute,
    batch_size: int = INFERENCE_BATCH,
    done: Done | None = None,
    states: Tensor | None = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield each batch's sentence indices and its output of `forward`, in fp32 on the CPU."""
    # On a CPU a GPT gets small batches of similar length: larger ones save less time than their padding
    # costs. Kernel launches limit a GPU and time steps limit `FastRNN`, so their batches are filled.
    full = isinstance(forward, FastRNN) or compute.device.type != "cpu"
    for index in plan_inference(tokens.lengths, batch_size, None if full else MAX_CPU_BATCH_TOKENS):
        input_ids, attention_mask = (tensor.to(compute.device) for tensor in pad(tokens, index))
        extra = {} if states is None else {"states": pad_states(states, tokens, index).to(compute.device)}
        with compute.autocast():
            output = forward(input_ids, attention_mask, **extra)
        yield index, output.float().cpu()
        if done is not None:
            done(len(index))


def compute_rows(
    forward: Forward, width: int, tokens: Tokens, compute: Compute, *args: Any, **options: Any
) -> NDArray[np.float32]:
    """Return the (N, width) output of `forward`; arguments as of `map_batches`."""
    rows = np.empty((len(tokens), width), dtype=np.float32)
    for index, output in map_batches(forward, tokens, compute, *args, **options):
        rows[index] = output.numpy()
    return rows
