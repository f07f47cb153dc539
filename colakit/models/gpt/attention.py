"""Causal self-attention of GPT-2, and the key/value cache of generation.

Shapes: B batch, T tokens, N rows (the tokens of packed sentences), D width, H heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import packed_attention, short_attention
from colakit.kernels.matmul import Linear
from colakit.models.gpt.config import GPTConfig

MAX_SHORT_TOKENS = 256  # up to this length `short_attention` trains faster on a CPU than torch's attention


class KVCache:
    """Keys and values of the tokens so far, so that generation computes each token once.

    Args:
        config: shape of the model.
        batch_size: B.
        max_tokens: tokens to allocate, at most `config.num_positions`.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        head_width = config.width // config.num_heads
        shape = (config.num_layers, 2, batch_size, config.num_heads, max_tokens, head_width)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values (B, H, T, d); return all of that layer's so far."""
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
    """Causal multi-head self-attention, one method for each layout of the input."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.c_attn = Linear(config.width, 3 * config.width)
        self.c_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for padded sentences (B, T, D)."""
        qkv, tokens = self._qkv(x), x.shape[1]
        if torch.is_grad_enabled() and x.device.type == "cpu" and tokens <= MAX_SHORT_TOKENS:
            y = short_attention(qkv, self._dropout())
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self._dropout(), is_causal=tokens > 1)
            y = y.transpose(1, 2)
        return self.c_proj(y.flatten(2))

    def forward_last(self, x: Tensor, last: Tensor) -> Tensor:
        """Return (B, D), the output at index `last` (B,) of each padded sentence in `x` (B, T, D)."""
        q, k, v = self._qkv(x).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        q = q[torch.arange(len(last), device=x.device), :, last].unsqueeze(2)  # (B, H, 1, d)
        visible = torch.arange(x.shape[1], device=x.device) <= last[:, None]  # (B, T)
        mask = visible[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self._dropout())
        return self.c_proj(y.flatten(1))

    def forward_packed(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) for packed sentences (N, D); with `rows` (B,), only these rows of it, (B, D).

        Args:
            starts: (B + 1,); sentence b is rows `starts[b]:starts[b + 1]`.
        """
        y = packed_attention(self._qkv(x), starts, self._dropout()).flatten(1)
        return self.c_proj(y if rows is None else y[rows])

    def forward_cached(self, x: Tensor, cache: KVCache) -> Tensor:
        """Return (B, T, D) for new tokens (B, T, D), which also attend to the cached ones.

        T must be 1 unless the cache is empty.
        """
        tokens = x.shape[1]
        assert not (cache.length and tokens > 1), "a filled cache takes one token at a time"
        q, k, v = self._qkv(x).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        k, v = (cached.to(q.dtype) for cached in cache.extend(self.layer, k, v))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self._dropout(), is_causal=tokens > 1)
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def _qkv(self, x: Tensor) -> Tensor:
        """Return (…, 3, H, d) for `x` (…, D)."""
        return self.c_attn(x).unflatten(-1, (3, self.num_heads, -1))

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0
