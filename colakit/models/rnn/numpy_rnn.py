"""Inference of a student with numpy, in fp32, so that `predict` starts without importing torch.

Shapes: B batch, T tokens, U distinct inputs, E embedding width, W width of all directions' states, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.recurrence import GATES, prepare_layer, run_layer

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class NumpyRNN:
    """Logits of a `DistilRNN` from its state dict as numpy arrays (see `recurrence.py`).

    Args:
        tensors: the state dict; only the recurrent weights are copied.

    Raises:
        ValueError: if a tensor is missing or unknown, has the wrong shape or dtype, or has rows out of range.
    """

    def __init__(self, config: RNNConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        _check(config, tensors)
        self.config = config
        self.tensors = tensors
        self.layers = [
            [prepare_layer(tensors, config.cell, n, d) for d in range(config.directions)]
            for n in range(config.recurrent_layers)
        ]

    def __call__(self, input_ids: Ints, attention_mask: Ints) -> Floats:
        """Return class logits (B, C) of (B, T) tokens, padded on the right, as `DistilRNN.forward` does."""
        lengths = attention_mask.sum(axis=1)  # (B,)
        order = _order(lengths, input_ids.shape[1])
        x, index = self._embedded(input_ids.T)
        # exp(-x) of a closed gate overflows to inf, and its sigmoid is 0; infinite weights give nan
        with np.errstate(over="ignore", invalid="ignore"):
            for directions in self.layers:
                states = run_layer(_NUMPY, self.config.cell, directions, x, index, order)  # (T, B, W)
                x = states.reshape(-1, states.shape[-1])
                index = np.arange(len(x)).reshape(states.shape[:2])
            if not self.layers:
                states = x[index]  # (T, B, E)
        pooled = self._pool(states, attention_mask.T[:, :, None] == 1, lengths)
        return pooled @ self.tensors["score.weight"].T + self.tensors["score.bias"]

    def _embedded(self, input_ids: Ints) -> tuple[Floats, Ints]:
        """Return embeddings (U, E) of the distinct tokens, and each token's index into them, (T, B)."""
        rows = input_ids if self.config.num_embeddings is None else self.tensors["row_of_token"][input_ids]
        if rows.shape[1] == 1:  # for one sentence, finding duplicates costs more than it saves
            return self.tensors["embedding.weight"][rows[:, 0]], np.arange(len(rows))[:, None]
        distinct, index = np.unique(rows, return_inverse=True)
        return self.tensors["embedding.weight"][distinct], index.reshape(rows.shape)

    def _pool(self, states: Floats, real: NDArray[np.bool_], lengths: Ints) -> Floats:
        """Return sentence vectors (B, W) from (T, B, W) states; `real` (T, B, 1) is false at padding."""
        match self.config.pooling:
            case "mean":
                return (states * real).sum(axis=0) / lengths[:, None].astype(np.float32)
            case "max":
                return np.where(real, states, -np.inf).max(axis=0).astype(np.float32)
            case "attention":
                scores = states @ self.tensors["attention.weight"].T + self.tensors["attention.bias"]
                scores = np.where(real, scores, np.float32(-np.inf))  # (T, B, 1)
                weights = np.exp(scores - scores.max(axis=0))
                return (weights / weights.sum(axis=0) * states).sum(axis=0)
        hidden = self.config.hidden_size
        forward = states[lengths - 1, np.arange(len(lengths)), :hidden]
        return np.concatenate([forward, states[0, :, hidden:]], axis=-1)


def _order(lengths: Ints, tokens: int) -> Ints:
    """Return the flat indices (T, B) of tokens in the order of the backward direction."""
    position = np.arange(tokens)[:, None]
    mirrored = lengths - 1 - position  # (T, B)
    return np.where(mirrored >= 0, mirrored, position) * len(lengths) + np.arange(len(lengths))


@dataclass(frozen=True)
class _Numpy:
    """Operations with numpy, in fp32."""

    def empty(self, *shape: int) -> Floats:
        return np.empty(shape, dtype=np.float32)

    def stack(self, arrays: Sequence[Any], axis: int, /) -> Any:
        return np.stack(arrays, axis)

    def concat(self, arrays: Sequence[Any], axis: int, /) -> Any:
        return np.concatenate(arrays, axis)

    def pick(self, rows: Floats, index: Ints, out: Floats) -> None:
        rows.take(index, axis=0, out=out, mode="clip")  # mode="raise" would buffer the output

    def product(self, add: Floats, x: Floats, weight: Floats) -> Floats:
        result = x @ weight
        result += add
        return result

    def add_product(self, gate: Floats, states: Floats, weight: Floats) -> None:
        gate += states @ weight

    def sigmoid_(self, x: Floats) -> None:
        np.negative(x, out=x)
        np.exp(x, out=x)
        x += 1
        np.reciprocal(x, out=x)

    def tanh(self, x: Floats) -> Floats:
        return np.tanh(x)


_NUMPY = _Numpy()


def _check(config: RNNConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise `ValueError` unless `tensors` has the names, shapes and dtypes of a student with `config`."""
    shapes = _shapes(config)
    if difference := set(tensors) ^ set(shapes):
        raise ValueError(f"{min(difference)} is missing, or is no tensor of this student")
    for name, shape in shapes.items():
        dtype = np.int32 if name == "row_of_token" else np.float32
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}")
    rows = tensors.get("row_of_token")
    if rows is not None and not ((rows >= 0) & (rows < len(tensors["embedding.weight"]))).all():
        raise ValueError("row_of_token has rows outside the embedding")


def _shapes(config: RNNConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each of a student's tensors."""
    width, hidden = config.width, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.num_embeddings or config.vocab_size, config.embedding_size),
        "score.weight": (config.num_labels, width),
        "score.bias": (config.num_labels,),
    }
    if config.num_embeddings is not None:
        shapes["row_of_token"] = (config.vocab_size,)
    if config.pooling == "attention":
        shapes |= {"attention.weight": (1, width), "attention.bias": (1,)}
    for layer in range(config.recurrent_layers):
        gates = GATES[config.cell] * hidden
        for direction in range(config.directions):
            name = f"layers.{layer}.{direction}"
            shapes |= {
                f"{name}.weight_ih_l0": (gates, width if layer else config.embedding_size),
                f"{name}.weight_hh_l0": (gates, hidden),
                f"{name}.bias_ih_l0": (gates,),
                f"{name}.bias_hh_l0": (gates,),
            }
    return shapes
