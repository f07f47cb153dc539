"""Inference of a student's recurrent layers, shared by torch (`FastRNN`) and numpy (`NumpyRNN`).

Equal to `DistilRNN.forward` up to rounding, and faster on a CPU:

- the first layer's input gates are computed once per distinct token of a batch;
- both directions step together in one batched product (torch), or one direction runs after the other so that
  its weights stay in a core's cache (numpy);
- the first step has no recurrent product, because the initial state is zero;
- tanh(x) of a candidate is 2·sigmoid(2x) - 1, with the inner 2 folded into the weights, so all gates are one
  sigmoid.

Shapes: B batch, T tokens, U distinct inputs, D directions in a `Layer`, H hidden width per direction, G gate
width per direction (4H for LSTM, 3H for GRU, H for RNN), W width of all directions' states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CANDIDATE = {"rnn": 0, "gru": 2, "lstm": 2}  # index of the tanh gate; torch orders gates rzn and ifgo
Array = TypeVar("Array", bound=Any)


class Arithmetic(Protocol[Array]):
    """Operations that torch and numpy spell differently."""

    def empty(self, *shape: int) -> Array:
        """Return an uninitialised fp32 array."""

    def stack(self, arrays: Sequence[Array], axis: int, /) -> Array:
        """Join arrays along a new axis."""

    def concat(self, arrays: Sequence[Array], axis: int, /) -> Array:
        """Join arrays along an existing axis."""

    def pick(self, rows: Array, index: Array, out: Array) -> None:
        """Copy rows (N, G) at `index` (D, B) into `out` (D, B, G)."""

    def product(self, add: Array, x: Array, weight: Array) -> Array:
        """Return `add` + x·`weight` (D, N, G) in fp32, for x (N, K) or (D, N, K)."""

    def add_product(self, gate: Array, states: Array, weight: Array) -> None:
        """Add states·`weight` to `gate` (D, B, G) in place."""

    def sigmoid_(self, x: Array) -> None:
        """Apply the sigmoid in place."""

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent."""


@dataclass(frozen=True)
class Layer(Generic[Array]):
    """Weights of the directions that step together, transposed for x·W; the tanh gate's are doubled.

    Attributes:
        w_input: (D, W_in, G), from input to gates.
        w_state: (D, H, G), from previous state to gates.
        bias: (D, 1, G).
        state_bias: (D, 1, G), a GRU's bias inside the product with its reset gate; zero for other gates.
    """

    w_input: Array
    w_state: Array
    bias: Array
    state_bias: Array


def prepare_layer(
    tensors: Mapping[str, NDArray[np.float32]], cell: str, layer: int, direction: int
) -> Layer[NDArray[np.float32]]:
    """Return the weights of one direction of a layer from a `DistilRNN`'s state dict."""
    w_ih, w_hh, b_ih, b_hh = (
        tensors[f"layers.{layer}.{direction}.{name}_l0"]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = w_hh.shape[1]
    candidate = slice(CANDIDATE[cell] * hidden, (CANDIDATE[cell] + 1) * hidden)
    scale = np.ones_like(b_ih)
    scale[candidate] = 2
    state_bias = np.zeros_like(b_hh)
    if cell == "gru":
        state_bias[candidate] = b_hh[candidate]
    return Layer(
        w_input=np.ascontiguousarray((w_ih * scale[:, None]).T)[None],
        w_state=np.ascontiguousarray((w_hh * scale[:, None]).T)[None],
        bias=(scale * (b_ih + b_hh - state_bias))[None, None],
        state_bias=(scale * state_bias)[None, None],
    )


def run_layer(
    lib: Arithmetic[Array], cell: str, layers: Sequence[Layer[Array]], x: Array, index: Array, order: Array
) -> Array:
    """Return a layer's states (T, B, W).

    Args:
        layers: the layer's directions; those in one `Layer` step together.
        x: (U, W_in), distinct inputs.
        index: (T, B), index into `x` of each token.
        order: (T, B), flat indices into (T, B) in the order in which the backward direction reads.
    """
    index_of_direction = [index, index.take(order)]
    outputs: list[Array] = []
    for layer in layers:
        indices = index_of_direction[len(outputs) : len(outputs) + len(layer.w_state)]
        gates = lib.product(layer.bias, x, layer.w_input)  # (D, U, G)
        rows = gates.reshape(-1, gates.shape[-1])  # (D·U, G)
        row_index = lib.stack([rows_of + d * len(x) for d, rows_of in enumerate(indices)], 1)  # (T, D, B)
        states = _STEPS[cell](lib, layer, rows, row_index)  # (T, D, B, H)
        outputs += [states[:, d] for d in range(len(indices))]
    if len(outputs) == 1:
        return outputs[0]
    forward, backward = outputs
    return lib.concat([forward, backward.reshape(-1, backward.shape[-1])[order]], -1)  # undo the reversal


def _lstm(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, row_index: Array) -> Array:
    """Return the states (T, D, B, H) of an LSTM.

    Args:
        rows: (D·U, G), gate inputs of every distinct input.
        row_index: (T, D, B), row of each token.
    """
    states, gate = _allocate(lib, layer, row_index)
    i, f, candidate, o = _parts(gate, 4)
    memory = lib.empty(*o.shape)  # (D, B, H)
    memory[...] = 0
    for t in range(len(row_index)):
        lib.pick(rows, row_index[t], gate)
        if t:
            lib.add_product(gate, states[t - 1], layer.w_state)
        lib.sigmoid_(gate)
        candidate *= 2
        candidate -= 1
        candidate *= i
        memory *= f
        memory += candidate
        states[t] = o * lib.tanh(memory)
    return states


def _gru(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, row_index: Array) -> Array:
    """Return the states (T, D, B, H) of a GRU; arguments as of `_lstm`."""
    states, gate = _allocate(lib, layer, row_index)
    r, z, candidate = _parts(gate, 3)
    both = 2 * layer.w_state.shape[1]
    for t in range(len(row_index)):
        lib.pick(rows, row_index[t], gate)
        by_state = layer.state_bias  # (D, 1, G), from the second step (D, B, G)
        if t:
            by_state = lib.product(layer.state_bias, states[t - 1], layer.w_state)
        resets = gate[..., :both]
        resets += by_state[..., :both]
        lib.sigmoid_(resets)
        candidate += r * by_state[..., both:]
        lib.sigmoid_(candidate)
        candidate *= 2
        candidate -= 1
        states[t] = candidate * (1 - z)
        if t:
            states[t] += z * states[t - 1]
    return states


def _rnn(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, row_index: Array) -> Array:
    """Return the states (T, D, B, H) of an RNN; arguments as of `_lstm`."""
    states, gate = _allocate(lib, layer, row_index)
    for t in range(len(row_index)):
        lib.pick(rows, row_index[t], gate)
        if t:
            lib.add_product(gate, states[t - 1], layer.w_state)
        lib.sigmoid_(gate)
        states[t] = 2 * gate - 1
    return states


def _allocate(lib: Arithmetic[Array], layer: Layer[Array], row_index: Array) -> tuple[Array, Array]:
    """Return empty states (T, D, B, H) and empty gates of one step (D, B, G)."""
    tokens, directions, batch = row_index.shape
    _, hidden, width = layer.w_state.shape
    return lib.empty(tokens, directions, batch, hidden), lib.empty(directions, batch, width)


def _parts(gate: Array, number: int) -> list[Array]:
    """Return views of the gates (D, B, G), each (D, B, H)."""
    hidden = gate.shape[-1] // number
    return [gate[..., k * hidden : (k + 1) * hidden] for k in range(number)]


_STEPS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}
