"""A student's recurrent layers without gradients, sooner: written once, for torch and for numpy.

What differs from `DistilRNN.forward`, which it equals but for rounding:

- gates of the first layer are computed once for each distinct token of a batch;
- directions take their steps together, in one batched product, or one direction after the other, so that its
  weights stay in a core's cache: as the caller likes;
- the first step has no product, as the state before it is zero;
- a candidate's tanh(x) is 2·sigmoid(2x) - 1, its inner 2 a part of the weights: all gates are one sigmoid.

Shapes: B batch, T tokens, U distinct inputs, D directions, H hidden width of each, G width of a direction's
gates (4H for an LSTM, 3H for a GRU, H for a plain network), W width of all directions' states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CANDIDATE = {"rnn": 0, "gru": 2, "lstm": 2}  # which of them is a tanh; torch's order is rzn and ifgo
Array = TypeVar("Array", bound=Any)


class Arithmetic(Protocol[Array]):
    """What the layers need of a library besides operators, indexing and `take`."""

    def empty(self, *shape: int) -> Array:
        """Return room for fp32 numbers."""

    def stack(self, arrays: Sequence[Array], axis: int, /) -> Array:
        """Put arrays of one shape beside one another, along a new axis."""

    def concat(self, arrays: Sequence[Array], axis: int, /) -> Array:
        """Put arrays one after another."""

    def pick(self, rows: Array, index: Array, out: Array) -> None:
        """Put rows (N, G) at `index` (D, B) into `out` (D, B, G)."""

    def product(self, add: Array, x: Array, weight: Array) -> Array:
        """Return `add` + x · `weight` (D, N, G) of x (N, K) or (D, N, K), in fp32."""

    def add_product(self, gate: Array, states: Array, weight: Array) -> None:
        """Add states · `weight` to `gate` (D, B, G) in place."""

    def sigmoid_(self, x: Array) -> None:
        """Take the sigmoid in place."""

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent."""


@dataclass(frozen=True)
class Layer(Generic[Array]):
    """Weights of directions that take their steps together, transposed for x·W, what tanh reads doubled.

    Attributes:
        read: (D, W_in, G), from inputs to gates.
        step: (D, H, G), from the state before to gates.
        bias: (D, 1, G), what is added to them.
        late: (D, 1, G), the bias that belongs to the state, for a GRU, whose reset gate scales it.
    """

    read: Array
    step: Array
    bias: Array
    late: Array


def prepared(
    tensors: Mapping[str, NDArray[np.float32]], cell: str, layer: int, direction: int
) -> Layer[NDArray[np.float32]]:
    """Return the weights of one direction of a layer, from those of a `DistilRNN` by their names there."""
    w_ih, w_hh, b_ih, b_hh = (
        tensors[f"layers.{layer}.{direction}.{name}_l0"]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = w_hh.shape[1]
    candidate = slice(CANDIDATE[cell] * hidden, (CANDIDATE[cell] + 1) * hidden)
    scale = np.ones_like(b_ih)
    scale[candidate] = 2
    of_state = np.zeros_like(b_hh)
    if cell == "gru":
        of_state[candidate] = b_hh[candidate]
    return Layer(
        read=np.ascontiguousarray((w_ih * scale[:, None]).T)[None],
        step=np.ascontiguousarray((w_hh * scale[:, None]).T)[None],
        bias=(scale * (b_ih + b_hh - of_state))[None, None],
        late=(scale * of_state)[None, None],
    )


def run(
    lib: Arithmetic[Array], cell: str, layers: Sequence[Layer[Array]], x: Array, index: Array, order: Array
) -> Array:
    """Return a layer's states (T, B, W).

    Args:
        layers: its directions, those in one `Layer` that take their steps together.
        x: (U, W_in), the inputs.
        index: (T, B), which input each token has.
        order: (T, B), the places of tokens as a backward direction reads them, counted along (T, B).
    """
    reads = [index, index.take(order)]
    found: list[Array] = []
    for layer in layers:
        together = reads[len(found) : len(found) + len(layer.step)]
        gates = lib.product(layer.bias, x, layer.read)  # (D, U, G)
        rows = gates.reshape(-1, gates.shape[-1])  # (D·U, G)
        read = lib.stack([places + d * len(x) for d, places in enumerate(together)], 1)  # (T, D, B)
        states = _STEPS[cell](lib, layer, rows, read)  # (T, D, B, H)
        found += [states[:, d] for d in range(len(together))]
    if len(found) == 1:
        return found[0]
    forward, backward = found
    return lib.concat([forward, backward.reshape(-1, backward.shape[-1])[order]], -1)  # reversed twice


def _lstm(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, read: Array) -> Array:
    """Return the states (T, D, B, H) of an LSTM.

    Args:
        rows: (D·U, G), the gates of every input.
        read: (T, D, B), which of them every step reads.
    """
    states, gate = _rooms(lib, layer, read)
    i, f, candidate, o = _parts(gate, 4)
    memory = lib.empty(*o.shape)  # (D, B, H)
    memory[...] = 0
    for t in range(len(read)):
        lib.pick(rows, read[t], gate)
        if t:
            lib.add_product(gate, states[t - 1], layer.step)
        lib.sigmoid_(gate)
        candidate *= 2
        candidate -= 1
        candidate *= i
        memory *= f
        memory += candidate
        states[t] = o * lib.tanh(memory)
    return states


def _gru(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, read: Array) -> Array:
    """Return the states (T, D, B, H) of a GRU; arguments as of `_lstm`."""
    states, gate = _rooms(lib, layer, read)
    r, z, candidate = _parts(gate, 3)
    both = 2 * layer.step.shape[1]
    for t in range(len(read)):
        lib.pick(rows, read[t], gate)
        own = lib.product(layer.late, states[t - 1], layer.step) if t else layer.late  # (D, B or 1, G)
        resets = gate[..., :both]
        resets += own[..., :both]
        lib.sigmoid_(resets)
        candidate += r * own[..., both:]
        lib.sigmoid_(candidate)
        candidate *= 2
        candidate -= 1
        states[t] = candidate * (1 - z)
        if t:
            states[t] += z * states[t - 1]
    return states


def _rnn(lib: Arithmetic[Array], layer: Layer[Array], rows: Array, read: Array) -> Array:
    """Return the states (T, D, B, H) of a plain network; arguments as of `_lstm`."""
    states, gate = _rooms(lib, layer, read)
    for t in range(len(read)):
        lib.pick(rows, read[t], gate)
        if t:
            lib.add_product(gate, states[t - 1], layer.step)
        lib.sigmoid_(gate)
        states[t] = 2 * gate - 1
    return states


def _rooms(lib: Arithmetic[Array], layer: Layer[Array], read: Array) -> tuple[Array, Array]:
    """Return room for the states (T, D, B, H) and for the gates of one step (D, B, G)."""
    tokens, directions, batch = read.shape
    _, hidden, width = layer.step.shape
    return lib.empty(tokens, directions, batch, hidden), lib.empty(directions, batch, width)


def _parts(gate: Array, number: int) -> list[Array]:
    """Return views of the gates (D, B, G), each (D, B, H)."""
    hidden = gate.shape[-1] // number
    return [gate[..., k * hidden : (k + 1) * hidden] for k in range(number)]


_STEPS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}
