"""Operations that a training step on the CPU spends its time in, each written for fewer passes over memory.

Each equals its plain counterpart (`tests/test_fused.py`); `docs/performance.md` says what each is worth.

Shapes: N rows, D width, V vocabulary, B batch, H heads, T tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Target of a row that does not count, as in `torch.nn.functional.cross_entropy`."""
ROWS_AT_A_TIME = 1024
SQRT_8_OVER_PI = math.sqrt(8 / math.pi)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return Σ cross_entropy(hidden · weightᵀ, targets), fp32, without ever holding all N·V logits in fp32.

    The gradient is computed beside the loss, chunk by chunk, as softmax minus one-hot; backward scales it.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64, `IGNORED` where a row does not count.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        wants_grad = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(rows) if wants_grad else None
        grad_weight = torch.zeros_like(weight) if wants_grad else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            chunk = slice(start, start + ROWS_AT_A_TIME)
            log_probs = F.log_softmax(rows[chunk] @ matrix.t(), dim=-1, dtype=torch.float32)  # (rows, V)
            counts = targets[chunk] != IGNORED
            index = targets[chunk].clamp_min(0)[:, None]
            total -= (log_probs.gather(1, index).squeeze(1) * counts).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            grad_logits = log_probs.exp_()
            grad_logits.scatter_add_(1, index, grad_logits.new_full((1, 1), -1.0).expand_as(index))
            if not counts.all():
                grad_logits *= counts[:, None]
            grad_logits = grad_logits.to(dtype)
            torch.mm(grad_logits, matrix, out=grad_hidden[chunk])
            grad_weight += grad_logits.t() @ rows[chunk]
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.to(ctx.hidden_dtype) * grad, grad_weight * grad, None


def short_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, causal: bool) -> Tensor:
    """Return softmax(q·kᵀ/√d + mask)·v as two batched matrix products, (B, H, T, d) like its inputs.

    For a few hundred tokens it trains faster on a CPU than the flash kernel, whose backward is slow there.
    """
    scores = q @ k.transpose(-2, -1)  # (B, H, T, T)
    bias = None
    if causal:
        tokens = q.shape[-2]
        bias = torch.full((tokens, tokens), -math.inf, device=q.device).triu(1)
    scores = scores.float() * q.shape[-1] ** -0.5
    probs = (scores if bias is None else scores + bias).softmax(dim=-1).to(q.dtype)
    if dropout:
        probs = F.dropout(probs, dropout)
    return probs @ v


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GPT-2's GELU, x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel, arXiv:1606.08415).

    Under `torch.compile` on a CPU it is written as x·sigmoid(2y), which is the same and spares the hyperbolic
    tangent, four times as slow as an exponential in vector code.
    """
    if not torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    y = x.float()
    return (y * torch.sigmoid(SQRT_8_OVER_PI * (y + 0.044715 * y * y * y))).to(x.dtype)
