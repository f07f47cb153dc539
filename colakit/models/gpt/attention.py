"""Causal self-attention of GPT-2: over padded sentences, packed ones, and from a cache of keys and values.

Shapes: B batch, T tokens, N real tokens of a batch, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from colakit.kernels.fused import drop
from colakit.kernels.matmul import Linear
from colakit.kernels.native import Kernels, Mask, kernels_for
from colakit.models.gpt.config import GPTConfig

ROWS = 4  # matrices of a multiple of so many rows are multiplied sooner than those of a few less
SHORT = 256  # tokens up to which attention trains faster on a CPU as two matrix products


class KVCache:
    """Keys and values of the tokens seen so far, so that generation computes each token once.

    Args:
        config: the model's shape.
        batch_size: B.
        max_tokens: room to reserve, at most `config.num_positions`.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        head_width = config.width // config.num_heads
        shape = (config.num_layers, 2, batch_size, config.num_heads, max_tokens, head_width)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D/H) keys and values of one layer; return all of that layer's so far."""
        end = self.length + keys.shape[2]
        self.store[layer, 0, :, :, self.length : end] = keys
        self.store[layer, 1, :, :, self.length : end] = values
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (K,) of the batch, in this order."""
        kept = self.store.new_empty((*self.store.shape[:2], len(rows), *self.store.shape[3:]))
        kept[..., : self.length, :] = self.store[:, :, rows, :, : self.length]
        self.store = kept


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.c_attn = Linear(config.width, 3 * config.width)
        self.c_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, cache: KVCache | None = None, last: Tensor | None = None) -> Tensor:
        """Return (B, T, D) for (B, T, D); each token sees itself and what stands left of it.

        With `last` (B,), a position in each row: return (B, 1, D), what stands there alone.
        """
        batch, tokens, width = x.shape
        qkv = self.c_attn(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        dropout = self.dropout if self.training else 0.0
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        if last is not None:
            y = _attend_from(last, q, k, v, dropout)
        elif cache is None and torch.is_grad_enabled() and x.device.type == "cpu" and tokens <= SHORT:
            y = short_attention(qkv, dropout)
        else:
            if cache is not None:
                assert not (cache.length and tokens > 1), "a filled cache takes one token at a time"
                k, v = (seen.to(q.dtype) for seen in cache.extend(self.layer, k, v))
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=tokens > 1)
            y = y.transpose(1, 2)
        return self.c_proj(y.reshape(batch, -1, width))

    def packed(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) for (N, D); sentence b has the rows from `starts[b]` up to `starts[b + 1]`.

        With `rows` (B,): return (B, D), what stands in these alone.
        """
        tokens, width = x.shape
        qkv = self.c_attn(x).view(tokens, 3, self.num_heads, width // self.num_heads)
        y = packed_attention(qkv, starts, self.dropout if self.training else 0.0).view(tokens, width)
        return self.c_proj(y if rows is None else y[rows])


def _attend_from(last: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Return (B, H, 1, D/H): the heads' answers to the query at `last`, from the keys up to it."""
    batch, _, tokens, _ = q.shape
    q = q[torch.arange(batch, device=q.device), :, last].unsqueeze(2)  # (B, H, 1, D/H)
    seen = torch.arange(tokens, device=q.device) <= last[:, None]  # (B, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], dropout_p=dropout)


def short_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention softmax(q·kᵀ/√d)·v, (B, T, H, d), of queries, keys and values together.

    For a few dozen tokens it is one kernel, where there are kernels; else two batched matrix products, which
    up to a few hundred tokens train faster on a CPU than the flash kernel, whose backward is slow there.

    Args:
        qkv: (B, T, 3, H, d).
        dropout: probability at which a weight of the softmax is dropped.
    """
    batch, tokens, _, heads, width = qkv.shape
    kernels = kernels_for(qkv.device, qkv.dtype)
    if kernels is not None and kernels.attends(batch, tokens, heads, width):
        starts = torch.arange(0, (batch + 1) * tokens, tokens)
        return packed_attention(qkv.flatten(0, 1), starts, dropout).unflatten(0, (batch, tokens))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
    future = torch.full((tokens, tokens), -math.inf, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1)).float() * width**-0.5  # (B, H, T, T)
    probs = (scores + future).softmax(dim=-1).to(q.dtype)
    return ((drop(probs, dropout) if dropout else probs) @ v).transpose(1, 2)


def packs(input_ids: Tensor, last: Tensor, num_heads: int, weight: Tensor) -> bool:
    """Tell whether `packed_attention` would take these sentences, padded (B, T), now.

    Args:
        last: (B,), where each ends; one that ends nowhere in T is left to what complains of it.
        weight: (…, D) of the model; what is multiplied has its type, or autocast's.
    """
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    kernels = kernels_for(weight.device, dtype)
    batch, longest = input_ids.shape
    if kernels is None or not kernels.attends(batch, longest, num_heads, weight.shape[-1] // num_heads):
        return False
    return last.dtype == torch.int64 and bool(((last >= 0) & (last < longest)).all())


def rounded_ends(last: Tensor, longest: int) -> Tensor:
    """Return where to end sentences, (B,), at `last` (B,) or behind it, for a multiple of `ROWS` in all.

    Nothing real sees the padding that is taken along. Where there is none, as where all are as long as the
    `longest`, no multiple may be reached.
    """
    missing = int(-(last + 1).sum() % ROWS)
    taken = (longest - 1 - last).cumsum(0).clamp_(max=missing)  # from the first sentences on
    return last + taken.diff(prepend=taken.new_zeros(1))


def packed_attention(qkv: Tensor, starts: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention, (N, H, d), of sentences that stand one after another, where it `packs`.

    Args:
        qkv: (N, 3, H, d).
        starts: (B + 1,) int64; sentence b has the rows from `starts[b]` up to `starts[b + 1]`.
        dropout: as in `short_attention`.
    """
    kernels = kernels_for(qkv.device, qkv.dtype)
    assert kernels is not None
    return _NativeAttention.apply(qkv, starts, dropout, kernels)


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor, dropout: float, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.mask = kernels, Mask.drawn(dropout)
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, starts)
        return kernels.attention(qkv, starts, ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, starts = ctx.saved_tensors
        return ctx.kernels.attention_backward(qkv, starts, grad.contiguous(), ctx.mask), None, None, None
