"""Cross-entropy of tokens straight from hidden states: the logits of a whole batch never stand in memory.

Shapes: B batch, T tokens, D width, V vocabulary, N rows: all tokens of a chunk that count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.kernels.native import Kernels, kernels_for

IGNORE_INDEX = -100
"""Target of a row that does not count, as in `torch.nn.functional.cross_entropy`."""
ROWS_AT_A_TIME = 1024

Weigh = Callable[[Tensor], Tensor]
"""Maps the nats (B,) of some groups of sentences to a loss, a scalar: the sum of those of each group."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weigh: Weigh = torch.sum, group: int = 1
) -> Tensor:
    """Return Σ weigh(nats), fp32, of the sentences' nats Σₜ cross_entropy(hidden · weightᵀ, targets).

    Logits stand in memory for about `ROWS_AT_A_TIME` tokens at a time, and for one group of sentences at
    least. The gradient is computed beside the loss, as softmax minus one-hot; backward scales it.

    Args:
        hidden: (B, T, D).
        weight: (V, D).
        targets: (B, T) int64, `IGNORE_INDEX` where a token does not count; it costs nothing then.
        weigh: what is made of the sentences' nats.
        group: consecutive sentences that `weigh` wants to see together.
    """
    device, learns = hidden.device, torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
    kernels = kernels_for(device, dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets, weigh, group, dtype, kernels, learns)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weigh: Weigh,
        group: int,
        dtype: torch.dtype,
        kernels: Kernels | None,
        learns: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        wants_hidden, wants_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        wants_grad = wants_hidden or wants_weight
        grad_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None  # a frozen one has none
        total = torch.zeros((), device=hidden.device)
        sentences = max(1, ROWS_AT_A_TIME // max(1, hidden.shape[1]) // group) * group
        for start in range(0, len(hidden), sentences):
            chunk = slice(start, start + sentences)
            places = (targets[chunk] != IGNORE_INDEX).nonzero(
                as_tuple=True
            )  # of N that count; waits for a GPU
            rows = hidden[chunk][places].to(dtype)  # (N, D)
            nats, gradient = _cross_entropy(rows @ matrix.t(), targets[chunk][places], kernels)
            losses = nats.new_zeros(targets[chunk].shape).index_put_(places, nats)  # (b, T)
            loss, slopes = _with_slopes(weigh, losses.sum(dim=1), wants_grad)
            total += loss
            if not wants_grad:
                continue
            grad_logits = gradient(None if slopes is None else slopes[places[0]])  # (N, V)
            if grad_hidden is not None:
                grad_hidden[chunk][places] = grad_logits @ matrix
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ rows
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        by_hidden = None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype) * grad
        by_weight = None if grad_weight is None else grad_weight * grad
        return by_hidden, by_weight, *(None,) * 6


def _cross_entropy(
    logits: Tensor, targets: Tensor, kernels: Kernels | None
) -> tuple[Tensor, Callable[[Tensor | None], Tensor]]:
    """Return the nats (N,) of `targets` (N,) by `logits` (N, V), and what makes a gradient of slopes (N,).

    The gradient is that of Σ slopes·nats by `logits`; without slopes, of Σ nats. It can be made once: it
    takes the logits' place.
    """
    if kernels is not None:
        nats, log_sums = kernels.cross_entropy(logits, targets)
        return nats, partial(kernels.cross_entropy_backward, logits, targets, log_sums)
    index = targets[:, None]
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)

    def gradient(slopes: Tensor | None) -> Tensor:
        probs = log_probs.exp_()
        probs.scatter_add_(1, index, probs.new_full((1, 1), -1.0).expand_as(index))
        if slopes is not None:
            probs *= slopes[:, None]
        return probs.to(logits.dtype)

    return -log_probs.gather(1, index).squeeze(1), gradient


def _with_slopes(weigh: Weigh, nats: Tensor, wants_slopes: bool) -> tuple[Tensor, Tensor | None]:
    """Return weigh(nats), and its slopes (b,) by the nats (b,): None where all are one, or not wanted."""
    if weigh is torch.sum or not wants_slopes:
        return weigh(nats), None
    with torch.enable_grad():
        loss = weigh(nats.requires_grad_())
        return loss.detach(), torch.autograd.grad(loss, nats)[0]
