"""Faster CPU inference of a student with torch, in fp32 or with the recurrent products in bf16.

Shapes: B batch, T tokens, U distinct inputs, D directions, W width of all directions' states, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from colakit.models.rnn.model import DistilRNN
from colakit.models.rnn.recurrence import Layer, prepare_layer, run_layer


class FastRNN:
    """Logits of a `DistilRNN` on the CPU, from copies of its recurrent weights (see `recurrence.py`).

    Later changes of the recurrent weights have no effect. The model must be in evaluation mode.

    Args:
        dtype: dtype of the recurrent layers' products; everything else is fp32. On a CPU with bf16 units,
            bf16 takes about half the time for many sentences, and changes logits by some thousandths.
    """

    def __init__(self, model: DistilRNN, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        config = model.config
        weights = model.layers.state_dict(prefix="layers.")
        arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
        self.layers = [
            _stack_directions(
                [prepare_layer(arrays, config.cell, n, d) for d in range(config.directions)], dtype
            )
            for n in range(config.recurrent_layers)
        ]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits (B, C) of (B, T) tokens, as `DistilRNN.forward` does."""
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            lengths = attention_mask.sum(dim=1)  # (B,)
            order = self._order(lengths, input_ids.shape[1])
            x, index = self._embedded(input_ids)
            for layer in self.layers:
                states = run_layer(_TORCH, self.model.config.cell, [layer], x, index, order)  # (T, B, W)
                x, index = states.flatten(0, 1), torch.arange(states[..., 0].numel()).view(states.shape[:2])
            if not self.layers:
                states = x[index]  # (T, B, E)
            return self.model.classify(self.model.pool(states.transpose(0, 1), attention_mask, lengths))

    def _order(self, lengths: Tensor, tokens: int) -> Tensor:
        """Return the flat indices (T, B) of tokens in the order of the backward direction."""
        if len(lengths) == 1 and int(lengths) == tokens:  # no padding
            return torch.arange(tokens - 1, -1, -1)[:, None]
        return self.model.reversal_indices(lengths, tokens).t() * len(lengths) + torch.arange(len(lengths))

    def _embedded(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (U, E) of the distinct tokens, and each token's index into them, (T, B)."""
        rows = self.model.embedding_rows(input_ids).t()
        if rows.shape[1] == 1:  # for one sentence, finding duplicates costs more than it saves
            return self.model.embedding(rows[:, 0]), torch.arange(len(rows))[:, None]
        distinct, index = rows.unique(return_inverse=True)
        return self.model.embedding(distinct), index


@dataclass(frozen=True)
class _Torch:
    """Operations with torch; products in the dtype of the weights, everything else in fp32."""

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape)

    def stack(self, arrays: Sequence[Tensor], axis: int, /) -> Tensor:
        return torch.stack(list(arrays), axis)

    def concat(self, arrays: Sequence[Tensor], axis: int, /) -> Tensor:
        return torch.cat(list(arrays), axis)

    def pick(self, rows: Tensor, index: Tensor, out: Tensor) -> None:
        torch.index_select(rows, 0, index.flatten(), out=out.view(-1, out.shape[-1]))

    def product(self, add: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        x = x.expand(len(weight), -1, -1)
        if weight.dtype == x.dtype:
            return torch.baddbmm(add, x, weight)
        return torch.bmm(x.to(weight.dtype), weight).float().add_(add)

    def add_product(self, gate: Tensor, states: Tensor, weight: Tensor) -> None:
        if weight.dtype == states.dtype:
            gate.baddbmm_(states, weight)
        else:
            gate.add_(torch.bmm(states.to(weight.dtype), weight))

    def sigmoid_(self, x: Tensor) -> None:
        x.sigmoid_()

    def tanh(self, x: Tensor) -> Tensor:
        return (2 * x).sigmoid_().mul_(2).sub_(1)  # torch's CPU tanh is several times slower


_TORCH = _Torch()


def _stack_directions(directions: Sequence[Layer[Any]], dtype: torch.dtype) -> Layer[Tensor]:
    """Return the directions' weights as one `Layer` of tensors, matrices in `dtype`."""
    w_input, w_state, bias, state_bias = (
        torch.cat([torch.from_numpy(getattr(layer, name)) for layer in directions])
        for name in ("w_input", "w_state", "bias", "state_bias")
    )
    return Layer(w_input.to(dtype), w_state.to(dtype), bias, state_bias)
