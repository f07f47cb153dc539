"""Causal self-attention of GPT-2 and of the Llama family, and the key/value cache of generation.

Shapes: B batch, T tokens, N rows (the tokens of packed sentences), D width, H heads, K heads of keys and
values, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import packed_attention, short_attention
from colakit.kernels.llama import Rotation, rotate, rotate_heads
from colakit.kernels.matmul import Linear
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.layers import RMSNorm

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
        shape = (config.num_layers, 2, batch_size, config.kv_heads, max_tokens, config.head_size)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values (B, K, T, d); return all of that layer's so far."""
        end = self.length + keys.shape[2]
        self.store[layer, 0, :, :, self.length : end] = keys
        self.store[layer, 1, :, :, self.length : end] = values
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order."""
        kept = self.store.new_empty((*self.store.shape[:2], len(rows), *self.store.shape[3:]))
        kept[..., : self.length, :] = self.store[:, :, rows, :, : self.length]
        self.store = kept


class Attention(nn.Module):
    """Causal multi-head self-attention, one method for each layout of the input.

    The methods take `rotation`, the rotary embedding of the tokens' positions; None for learnt positions.
    Subclasses define the projections.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Return (B, T, D) for padded sentences (B, T, D)."""
        qkv, tokens = self.qkv(x, rotation), x.shape[1]
        if torch.is_grad_enabled() and x.device.type == "cpu" and tokens <= MAX_SHORT_TOKENS:
            y = short_attention(qkv, self._dropout())
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self._dropout(), is_causal=bool(tokens > 1))
            y = y.transpose(1, 2)
        return self.output(y.flatten(2))

    def forward_last(self, x: Tensor, last: Tensor, rotation: Rotation | None) -> Tensor:
        """Return (B, D), the output at index `last` (B,) of each padded sentence in `x` (B, T, D)."""
        q, k, v = self.qkv(x, rotation).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        q = q[torch.arange(len(last), device=x.device), :, last].unsqueeze(2)  # (B, H, 1, d)
        visible = torch.arange(x.shape[1], device=x.device) <= last[:, None]  # (B, T)
        mask = visible[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self._dropout())
        return self.output(y.flatten(1))

    def forward_packed(
        self, x: Tensor, starts: Tensor, rotation: Rotation | None, rows: Tensor | None = None
    ) -> Tensor:
        """Return (N, D) for packed sentences (N, D); with `rows` (B,), only these rows of it, (B, D).

        Args:
            starts: (B + 1,); sentence b is rows `starts[b]:starts[b + 1]`.
        """
        y = packed_attention(self.qkv(x, rotation), starts, self._dropout()).flatten(1)
        return self.output(y if rows is None else y[rows])

    def forward_cached(self, x: Tensor, cache: KVCache, rotation: Rotation | None) -> Tensor:
        """Return (B, T, D) for new tokens (B, T, D), which also attend to the cached ones.

        T must be 1 unless the cache is empty.
        """
        tokens = x.shape[1]
        assert not (cache.length and tokens > 1), "a filled cache takes one token at a time"
        q, k, v = (part.transpose(1, 2) for part in self.project(x, rotation))  # (B, H or K, T, d)
        k, v = (cached.to(q.dtype) for cached in cache.extend(self.layer, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self._dropout(), is_causal=tokens > 1, enable_gqa=k.shape[1] != q.shape[1]
        )
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (…, H, d), keys and values (…, K, d) for `x` (…, D)."""
        raise NotImplementedError

    def qkv(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Return queries, keys and values, (…, 3, H, d), for `x` (…, D)."""
        raise NotImplementedError

    def output(self, y: Tensor) -> Tensor:
        """Return the output projection (…, D) of the heads (…, H·d)."""
        raise NotImplementedError

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class GPT2Attention(Attention):
    """Queries, keys and values from one linear layer."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.c_attn = Linear(config.width, 3 * config.width)
        self.c_proj = Linear(config.width, config.width)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.project`."""
        q, k, v = self.qkv(x, rotation).unbind(-3)
        return q, k, v

    def qkv(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """As `Attention.qkv`."""
        return self.c_attn(x).unflatten(-1, (3, self.num_heads, -1))

    def output(self, y: Tensor) -> Tensor:
        """As `Attention.output`."""
        return self.c_proj(y)


class LlamaAttention(Attention):
    """Rotary positions, and keys and values that groups of query heads share (arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        size, bias = config.head_size, config.qkv_bias
        self.head_size = size
        self.q_proj = Linear(config.width, config.num_heads * size, bias=bias)
        self.k_proj = Linear(config.width, config.kv_heads * size, bias=bias)
        self.v_proj = Linear(config.width, config.kv_heads * size, bias=bias)
        self.o_proj = Linear(config.num_heads * size, config.width, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(size, eps=config.norm_epsilon)
            self.k_norm = RMSNorm(size, eps=config.norm_epsilon)
        self.has_norms = config.qk_norm

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.project`."""
        assert rotation is not None
        q, k, v = self._heads(x)
        return rotate(q, rotation, v.dtype), rotate(k, rotation, v.dtype), v

    def qkv(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """As `Attention.qkv`."""
        assert rotation is not None
        return rotate_heads(*self._heads(x), rotation)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (…, H, d), keys and values (…, K, d) before rotation."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_size)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return (self.q_norm(q), self.k_norm(k), v) if self.has_norms else (q, k, v)

    def output(self, y: Tensor) -> Tensor:
        """As `Attention.output`."""
        return self.o_proj(y)
