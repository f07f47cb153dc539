"""Causal self-attention for training on short sentences, faster on a CPU than torch's flash kernel.

Shapes: B batch, T tokens, N rows (all sentences' tokens, concatenated), H heads, d head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.kernels.fused import drop
from colakit.kernels.matmul import compute_dtype
from colakit.kernels.native import DropoutMask, Kernels, kernels_for

ROW_ALIGNMENT = 4  # CPU matrix products are faster with a multiple of 4 rows


def short_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention softmax(q·kᵀ/√d)·v, (B, T, H, d).

    Uses the C kernel if it supports the shape, otherwise two batched matrix products. Up to a few hundred
    tokens both train faster on a CPU than the flash kernel, whose backward pass is slow there.

    Args:
        qkv: queries, keys and values, (B, T, 3, H, d).
        dropout: dropout probability of the softmax weights.
    """
    batch, tokens, _, heads, width = qkv.shape
    kernels = kernels_for(qkv.device, qkv.dtype)
    if kernels is not None and kernels.supports_attention(batch, tokens, heads, width):
        starts = torch.arange(0, (batch + 1) * tokens, tokens)
        return packed_attention(qkv.flatten(0, 1), starts, dropout).unflatten(0, (batch, tokens))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
    future = torch.full((tokens, tokens), -math.inf, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1)).float() * width**-0.5  # (B, H, T, T)
    probs = (scores + future).softmax(dim=-1).to(q.dtype)
    return ((drop(probs, dropout) if dropout else probs) @ v).transpose(1, 2)


def can_pack(input_ids: Tensor, last: Tensor, num_heads: int, head_width: int, weight: Tensor) -> bool:
    """Return whether `packed_attention` supports these sentences in the current autocast context.

    Args:
        input_ids: (B, T), padded on the right.
        last: index of each sentence's last token, (B,). Indices outside [0, T) return False.
        num_heads, head_width: H and d.
        weight: any weight of the model; without autocast, attention runs in its dtype.
    """
    kernels = kernels_for(weight.device, compute_dtype(weight))
    batch, tokens = input_ids.shape
    if kernels is None or not kernels.supports_attention(batch, tokens, num_heads, head_width):
        return False
    return last.dtype == torch.int64 and bool(((last >= 0) & (last < tokens)).all())


def aligned_ends(last: Tensor, num_tokens: int) -> Tensor:
    """Return the last index to keep of each sentence, (B,), so that N is a multiple of `ROW_ALIGNMENT`.

    Sentences are extended by padding, which causal attention hides from real tokens. N stays unaligned if
    there is too little padding.

    Args:
        last: index of each sentence's last token, (B,).
        num_tokens: T, padding included.
    """
    missing = int(-(last + 1).sum() % ROW_ALIGNMENT)
    extra = (num_tokens - 1 - last).cumsum(0).clamp_(max=missing)  # cumulative, from the first sentence on
    return last + extra.diff(prepend=extra.new_zeros(1))


def packed_attention(qkv: Tensor, starts: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention within each packed sentence, (N, H, d). Requires active C kernels.

    Args:
        qkv: queries, keys and values, (N, 3, H, d).
        starts: (B + 1,) int64; sentence b is rows `starts[b]:starts[b + 1]`.
        dropout: dropout probability of the softmax weights.
    """
    kernels = kernels_for(qkv.device, qkv.dtype)
    assert kernels is not None
    return _PackedAttention.apply(qkv, starts, dropout, kernels)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor, dropout: float, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.mask = kernels, DropoutMask.draw(dropout)
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, starts)
        return kernels.attention(qkv, starts, ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, starts = ctx.saved_tensors
        return ctx.kernels.attention_backward(qkv, starts, grad.contiguous(), ctx.mask), None, None, None
