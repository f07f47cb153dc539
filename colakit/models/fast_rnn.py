"""A student's logits without gradients, sooner: for the CPU, where its time goes into many small products.

What differs from `DistilRNN.forward`, which it equals but for rounding:

- gates of the first layer are computed once for each distinct token of a batch;
- both directions take a step in one batched product, added to the gates in place;
- the first step has no product, as the state before it is zero;
- products are taken in bf16 where that is asked for, all else in fp32;
- tanh(x) is 2·sigmoid(2x) - 1, its inner 2 a part of the weights: vectorised tanh is several times slower.

Shapes: B batch, T tokens, U distinct inputs, D directions, H hidden width of each, G width of a direction's
gates (4H for an LSTM, 3H for a GRU, H for a plain network), W = D·H, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colakit.models.rnn import DistilRNN

CANDIDATE = {"rnn": 0, "gru": 2, "lstm": 2}  # which of the gates is a tanh; torch's order is ifgo and rzn


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, its directions side by side, transposed for x·W, what tanh reads doubled.

    Attributes:
        read: (D, W_in, G), from inputs to gates.
        step: (D, H, G), from the state before to gates.
        bias: (D, 1, G), what is added to them.
        late: (D, 1, G), the bias that belongs to the state, for a GRU, whose reset gate scales it.
    """

    read: Tensor
    step: Tensor
    bias: Tensor
    late: Tensor


class FastRNN:
    """The logits of a `DistilRNN` on the CPU, from copies of its recurrent weights.

    It has to be made anew where the weights have changed since. The model must be in evaluation mode.

    Args:
        dtype: what the recurrent layers' products are taken in. For many sentences bf16 takes about half as
            long where the processor multiplies it, and moves logits by some thousandths; all else is fp32.
    """

    def __init__(self, model: DistilRNN, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        with torch.inference_mode():
            cell = model.config.cell
            self.layers = [_prepared(list(layer.children()), cell, dtype) for layer in model.layers]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits (B, C) of (B, T) tokens, as `DistilRNN.forward` does."""
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            lengths = attention_mask.sum(dim=1)  # (B,)
            order = self._order(lengths, input_ids.shape[1])
            x, index = self._embedded(input_ids)
            for layer in self.layers:
                states = self._run(layer, x, index, order)  # (T, B, W)
                x, index = states.flatten(0, 1), _numbers(states)
            return self.model.answer(self.model.pool(states.transpose(0, 1), attention_mask, lengths))

    def _order(self, lengths: Tensor, tokens: int) -> Tensor | None:
        """Return the places (T, B) of tokens as the backward direction reads them; None if there is none."""
        if not self.model.config.bidirectional:
            return None
        if len(lengths) == 1 and int(lengths) == tokens:  # without padding, it begins at the end
            return torch.arange(tokens - 1, -1, -1)[:, None]
        return self.model.reversal(lengths, tokens).t() * len(lengths) + torch.arange(len(lengths))

    def _embedded(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (U, E) of the distinct tokens, and which of them each token is, (T, B)."""
        rows = self.model.rows(input_ids).t()
        if rows.shape[1] == 1:  # of so few tokens, finding the equal ones costs more than it saves
            return self.model.embedding(rows[:, 0]), torch.arange(len(rows))[:, None]
        distinct, index = rows.unique(return_inverse=True)
        return self.model.embedding(distinct), index

    def _run(self, layer: _Layer, x: Tensor, index: Tensor, order: Tensor | None) -> Tensor:
        """Return a layer's states (T, B, W).

        Args:
            x: (U, W_in), the inputs.
            index: (T, B), which input each token has.
            order: (T, B), the places of tokens as the backward direction reads them.
        """
        gates = _product(layer.bias, x.expand(len(layer.read), -1, -1), layer.read)  # (D, U, G)
        read = index[:, None] if order is None else torch.stack([index, index.take(order) + len(x)], dim=1)
        states = _STEPS[self.model.config.cell](layer, gates.flatten(0, 1), read)  # (T, D, B, H)
        if order is None:
            return states[:, 0]
        backward = states[:, 1].flatten(0, 1)[order]  # reversing twice is reading forwards
        return torch.cat([states[:, 0], backward], dim=-1)


def _numbers(states: Tensor) -> Tensor:
    """Return (T, B) numbers of all tokens of (T, B, W) states."""
    return torch.arange(states.shape[0] * states.shape[1]).view(states.shape[:2])


def _product(add: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `add` + x · `weight`, in fp32; the product is taken in the type of `weight`."""
    if weight.dtype == x.dtype:
        return torch.baddbmm(add, x, weight)
    return torch.bmm(x.to(weight.dtype), weight).float().add_(add)


def _add_product(gate: Tensor, states: Tensor, weight: Tensor) -> None:
    """Add states · `weight` to the gates in place; the product is taken in the type of `weight`."""
    if weight.dtype == states.dtype:
        gate.baddbmm_(states, weight)
    else:
        gate.add_(torch.bmm(states.to(weight.dtype), weight))


def _prepared(directions: list[nn.Module], cell: str, dtype: torch.dtype) -> _Layer:
    read, bias, step, late = [], [], [], []
    for direction in directions:
        w_ih, w_hh, b_ih, b_hh = (
            direction.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = w_hh.shape[1]
        candidate = slice(CANDIDATE[cell] * hidden, (CANDIDATE[cell] + 1) * hidden)
        scale = torch.ones_like(b_ih)
        scale[candidate] = 2
        of_state = torch.zeros_like(b_hh)
        if cell == "gru":
            of_state[candidate] = b_hh[candidate]
        read.append((w_ih * scale[:, None]).t())
        step.append((w_hh * scale[:, None]).t())
        bias.append((scale * (b_ih + b_hh - of_state))[None])
        late.append((scale * of_state)[None])
    return _Layer(
        read=torch.stack(read).to(dtype),
        step=torch.stack(step).to(dtype),
        bias=torch.stack(bias),
        late=torch.stack(late),
    )


def _lstm(layer: _Layer, gates: Tensor, read: Tensor) -> Tensor:
    """Return the states (T, D, B, H) of an LSTM.

    Args:
        gates: (D·U, G).
        read: (T, D, B), which of them every step reads.
    """
    states, gate = _rooms(layer, read)
    before, twice_cell = None, states.new_zeros(states.shape[1:])
    flat, (i, f, candidate, o) = gate.flatten(0, 1), gate.chunk(4, dim=-1)
    for state, rows in zip(states.unbind(), read.flatten(1).unbind(), strict=True):
        torch.index_select(gates, 0, rows, out=flat)
        if before is not None:
            _add_product(gate, before, layer.step)
        gate.sigmoid_()
        twice_cell.mul_(f).addcmul_(i, candidate, value=4).sub_(i, alpha=2)  # f·c + i·tanh, doubled
        before = torch.addcmul(-o, o, twice_cell.sigmoid(), value=2, out=state)  # o·tanh
    return states


def _gru(layer: _Layer, gates: Tensor, read: Tensor) -> Tensor:
    """Return the states (T, D, B, H) of a GRU; arguments as of `_lstm`."""
    states, gate = _rooms(layer, read)
    before = torch.zeros_like(states[0])
    both = 2 * layer.step.shape[1]
    for state, rows in zip(states, read.flatten(1), strict=True):
        torch.index_select(gates, 0, rows, out=gate.flatten(0, 1))
        own = _product(layer.late, before, layer.step)  # (D, B, G)
        r, z = (gate[..., :both] + own[..., :both]).sigmoid_().chunk(2, dim=-1)
        n = torch.addcmul(gate[..., both:], r, own[..., both:]).sigmoid_().mul_(2).sub_(1)
        before = torch.lerp(n, before, z, out=state)  # (1 - z)·n + z·h
    return states


def _rnn(layer: _Layer, gates: Tensor, read: Tensor) -> Tensor:
    """Return the states (T, D, B, H) of a plain network; arguments as of `_lstm`."""
    states, gate = _rooms(layer, read)
    for t, rows in enumerate(read.flatten(1)):
        torch.index_select(gates, 0, rows, out=gate.flatten(0, 1))
        if t:
            _add_product(gate, states[t - 1], layer.step)
        torch.sub(gate.sigmoid_().mul_(2), 1, out=states[t])
    return states


def _rooms(layer: _Layer, read: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for the states (T, D, B, H) and for the gates of one step (D, B, G)."""
    _, hidden, width = layer.step.shape
    return layer.bias.new_empty(*read.shape, hidden), layer.bias.new_empty(*read.shape[1:], width)


_STEPS: dict[str, Callable[[_Layer, Tensor, Tensor], Tensor]] = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}
