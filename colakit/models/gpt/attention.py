"""Causal self-attention of GPT-2: over padded sentences, packed ones, and from a cache of keys and values.

Shapes: B batch, T tokens, N real tokens of a batch, D width, H heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import packed_attention, short_attention
from colakit.kernels.matmul import Linear
from colakit.models.gpt.config import GPTConfig

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
