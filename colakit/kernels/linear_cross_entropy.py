"""Cross-entropy of tokens straight from hidden states, without ever holding the logits of a whole batch.

Shapes: B batch, T tokens, D width, V vocabulary, N rows (the tokens of a chunk that count).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.kernels.matmul import compute_dtype
from colakit.kernels.native import Kernels, kernels_for

IGNORE_INDEX = -100
"""Target of a token that does not count, as in `torch.nn.functional.cross_entropy`."""
CHUNK_ROWS = 1024

Reduce = Callable[[Tensor], Tensor]
"""Maps the negative log-likelihoods of some sentences, (b, …), to a loss, a scalar summed over b."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduce: Reduce = torch.sum
) -> Tensor:
    """Return reduce(nll), fp32, with nll = Σₜ cross_entropy(hidden · weightᵀ, targets) of each sentence.

    Logits of about `CHUNK_ROWS` tokens are held at a time, at least those of one item of the leading
    dimension. The gradient, softmax minus one-hot, is computed in the forward pass; backward scales it.

    Args:
        hidden: (B, T, D), or (B, 2, T, D) for a `reduce` of pairs of sentences.
        weight: (V, D).
        targets: (B, T) or (B, 2, T), int64; tokens with `IGNORE_INDEX` do not count and cost nothing.
        reduce: called once for each chunk, with its nll, (b,) or (b, 2); the results are added up.
    """
    device, learns = hidden.device, torch.is_grad_enabled()
    dtype = compute_dtype(hidden)
    kernels = kernels_for(device, dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets, reduce, dtype, kernels, learns)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        reduce: Reduce,
        dtype: torch.dtype,
        kernels: Kernels | None,
        learns: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        wants_hidden, wants_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        wants_grad = wants_hidden or wants_weight
        grad_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), device=hidden.device)
        size = max(1, CHUNK_ROWS // max(1, targets[:1].numel()))
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            counted = (targets[chunk] != IGNORE_INDEX).nonzero(as_tuple=True)  # N indices; a sync point
            rows = hidden[chunk][counted].to(dtype)  # (N, D)
            nll, backward = _cross_entropy(rows @ matrix.t(), targets[chunk][counted], kernels)
            nll = nll.new_zeros(targets[chunk].shape).index_put_(counted, nll).sum(dim=-1)  # (b,) or (b, 2)
            loss, grad_nll = _reduce_with_grad(reduce, nll, wants_grad)
            total += loss
            if not wants_grad:
                continue
            grad_logits = backward(None if grad_nll is None else grad_nll[counted[:-1]])  # (N, V)
            if grad_hidden is not None:
                grad_hidden[chunk][counted] = grad_logits @ matrix
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ rows
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(ctx.hidden_dtype) * grad
        return grad_hidden, None if grad_weight is None else grad_weight * grad, *(None,) * 5


def _cross_entropy(
    logits: Tensor, targets: Tensor, kernels: Kernels | None
) -> tuple[Tensor, Callable[[Tensor | None], Tensor]]:
    """Return the nll (N,) of `targets` (N,) under `logits` (N, V), and its backward pass.

    The backward pass maps the gradient of nll (N,), None for all ones, to that of the logits. It overwrites
    the logits, so it can be called only once.
    """
    if kernels is not None:
        nll, log_sums = kernels.cross_entropy(logits, targets)
        return nll, partial(kernels.cross_entropy_backward, logits, targets, log_sums)
    index = targets[:, None]
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)

    def backward(grad: Tensor | None) -> Tensor:
        probs = log_probs.exp_()
        probs.scatter_add_(1, index, probs.new_full((1, 1), -1.0).expand_as(index))
        if grad is not None:
            probs *= grad[:, None]
        return probs.to(logits.dtype)

    return -log_probs.gather(1, index).squeeze(1), backward


def _reduce_with_grad(reduce: Reduce, nll: Tensor, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return reduce(nll) and its gradient, None if that is all ones or not wanted."""
    if reduce is torch.sum or not wants_grad:
        return reduce(nll), None
    with torch.enable_grad():
        loss = reduce(nll.requires_grad_())
        return loss.detach(), torch.autograd.grad(loss, nll)[0]
