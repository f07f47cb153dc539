"""A student's logits in numpy alone, without torch, whose import takes longer than labelling thousands.

The recurrent layers are those of `models/recurrence.py`; everything is fp32.

Shapes: B batch, T tokens, U distinct inputs, E embedding width, W width of all directions' states, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.recurrence import GATES, prepared, run

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class NumpyRNN:
    """The logits of a `DistilRNN`, from its tensors as arrays.

    Args:
        tensors: all of the model's, by their names there; they are not copied but for the recurrent ones.

    Raises:
        ValueError: if a tensor is missing, or of another shape than `config` says, or points beyond another.
    """

    def __init__(self, config: RNNConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        _check(config, tensors)
        self.config = config
        self.tensors = tensors
        self.layers = [
            [prepared(tensors, config.cell, n, d) for d in range(config.directions)]
            for n in range(config.num_layers)
        ]

    def __call__(self, input_ids: Ints, attention_mask: Ints) -> Floats:
        """Return class logits (B, C) of (B, T) tokens, padded on the right, as `DistilRNN.forward` does."""
        lengths = attention_mask.sum(axis=1)  # (B,)
        order = _order(lengths, input_ids.shape[1])
        x, index = self._embedded(input_ids.T)
        # of a gate that is shut, exp(-x) is beyond fp32, and the sigmoid 0; infinite weights answer nan
        with np.errstate(over="ignore", invalid="ignore"):
            for directions in self.layers:
                states = run(_NUMPY, self.config.cell, directions, x, index, order)  # (T, B, W)
                x = states.reshape(-1, states.shape[-1])
                index = np.arange(len(x)).reshape(states.shape[:2])
        pooled = self._pool(states, attention_mask.T[:, :, None] == 1, lengths)
        return pooled @ self.tensors["score.weight"].T + self.tensors["score.bias"]

    def _embedded(self, input_ids: Ints) -> tuple[Floats, Ints]:
        """Return embeddings (U, E) of the distinct ones of (T, B) tokens, and which of them each token is."""
        rows = input_ids if self.config.num_embeddings is None else self.tensors["row_of_token"][input_ids]
        if rows.shape[1] == 1:  # of so few tokens, finding the equal ones costs more than it saves
            return self.tensors["embedding.weight"][rows[:, 0]], np.arange(len(rows))[:, None]
        distinct, index = np.unique(rows, return_inverse=True)
        return self.tensors["embedding.weight"][distinct], index.reshape(rows.shape)

    def _pool(self, states: Floats, real: NDArray[np.bool_], lengths: Ints) -> Floats:
        """Return the sentences (B, W) that (T, B, W) states make up; `real` (T, B, 1) are not padding."""
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
    """Return the places (T, B) of tokens as the backward direction reads them."""
    position = np.arange(tokens)[:, None]
    mirrored = lengths - 1 - position  # (T, B)
    return np.where(mirrored >= 0, mirrored, position) * len(lengths) + np.arange(len(lengths))


@dataclass(frozen=True)
class _Numpy:
    """numpy's arithmetic, fp32."""

    def empty(self, *shape: int) -> Floats:
        return np.empty(shape, dtype=np.float32)

    def stack(self, arrays: Sequence[Any], axis: int, /) -> Any:
        return np.stack(arrays, axis)

    def concat(self, arrays: Sequence[Any], axis: int, /) -> Any:
        return np.concatenate(arrays, axis)

    def pick(self, rows: Floats, index: Ints, out: Floats) -> None:
        rows.take(index, axis=0, out=out, mode="clip")  # unchecked: `raise` would buffer the output

    def product(self, add: Floats, x: Floats, weight: Floats) -> Floats:
        found = x @ weight
        found += add
        return found

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
    """Raise `ValueError` unless these are the tensors of a student of that shape."""
    wanted = _shapes(config)
    if set(tensors) != set(wanted):
        raise ValueError("other tensors than a student of this shape has")
    for name, shape in wanted.items():
        kind = np.int32 if name == "row_of_token" else np.float32
        if tensors[name].shape != shape or tensors[name].dtype != kind:
            raise ValueError(f"{name} is of another shape or kind")
    rows = tensors.get("row_of_token")
    if rows is not None and not ((rows >= 0) & (rows < len(tensors["embedding.weight"]))).all():
        raise ValueError("row_of_token points beyond the embedding")


def _shapes(config: RNNConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a student's tensors."""
    width, hidden = config.hidden_size * config.directions, config.hidden_size
    gates = GATES[config.cell] * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.num_embeddings or config.vocab_size, config.embedding_size),
        "score.weight": (config.num_labels, width),
        "score.bias": (config.num_labels,),
    }
    if config.num_embeddings is not None:
        shapes["row_of_token"] = (config.vocab_size,)
    if config.pooling == "attention":
        shapes |= {"attention.weight": (1, width), "attention.bias": (1,)}
    for layer in range(config.num_layers):
        for direction in range(config.directions):
            name = f"layers.{layer}.{direction}"
            shapes |= {
                f"{name}.weight_ih_l0": (gates, width if layer else config.embedding_size),
                f"{name}.weight_hh_l0": (gates, hidden),
                f"{name}.bias_ih_l0": (gates,),
                f"{name}.bias_hh_l0": (gates,),
            }
    return shapes
