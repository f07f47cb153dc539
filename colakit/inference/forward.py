"""Logits and hidden states of many sentences, computed in batches of similar length.

Shapes: N sentences, B batch, T tokens, L tokens in all sentences, D width, C classes.
"""

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
    """Return the fastest forward function with the current weights: `FastRNN` for a student on a CPU.

    Args:
        student_dtype: dtype of `FastRNN`'s products, independent of `compute.dtype`.
    """
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
        batch_size: largest number of sentences computed at a time.
        states: output of `compute_states`, which spares a `GPTClassifier` its frozen blocks.
    """
    with evaluating(model):
        batches = map_batches(fastest_forward(model, compute), tokens, compute, batch_size, done, states)
        return collect_rows(batches, len(tokens), int(model.num_labels))  # type: ignore[arg-type]


def compute_hidden(
    model: GPTClassifier, tokens: Tokens, compute: Compute, done: Done | None = None
) -> NDArray[np.float32]:
    """Return the (N, D) hidden states that the classification head reads."""
    with evaluating(model):
        batches = map_batches(model.pooled, tokens, compute, done=done)
        return collect_rows(batches, len(tokens), model.config.width)


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
        return model.transformer.frozen_states(input_ids)[attention_mask.bool()]

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
    """Yield each batch's sentence indices and its output of `forward`, in fp32 on the CPU.

    A GPT's batches on a CPU end at `MAX_CPU_BATCH_TOKENS` tokens, because padding costs more there than a
    larger batch saves. Batches on a GPU (bound by launches) and of `FastRNN` (bound by its steps) are full.
    """
    pads_freely = isinstance(forward, FastRNN) or compute.device.type != "cpu"
    for index in plan_inference(tokens.lengths, batch_size, None if pads_freely else MAX_CPU_BATCH_TOKENS):
        input_ids, attention_mask = (tensor.to(compute.device) for tensor in pad(tokens, index))
        known = {} if states is None else {"states": pad_states(states, tokens, index).to(compute.device)}
        with compute.autocast():
            output = forward(input_ids, attention_mask, **known)
        yield index, output.float().cpu()
        if done is not None:
            done(len(index))


def collect_rows(
    batches: Iterable[tuple[NDArray[np.int64], Tensor]], num_sentences: int, width: int
) -> NDArray[np.float32]:
    """Return the (N, width) rows of `map_batches` in the order of the sentences."""
    rows = np.empty((num_sentences, width), dtype=np.float32)
    for index, output in batches:
        rows[index] = output.numpy()
    return rows
