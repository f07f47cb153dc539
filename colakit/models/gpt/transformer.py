"""Bodies of decoder-only transformers: GPT-2 and the Llama family, in three layouts of the tokens.

Shapes: B batch, T tokens, N rows (the tokens of packed sentences), D width.

- padded (B, T, D): padding is on the right. Causal attention hides it from real tokens, so no attention mask
  is needed.
- packed (N, D): sentences concatenated, without padding. Faster classification on a CPU; needs the C kernel.
- cached (B, T, D): new tokens only; earlier keys and values come from a `KVCache`.

Each layout has its own `forward…` method.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import aligned_ends, can_pack
from colakit.kernels.fused import Dropout
from colakit.kernels.llama import Rotation
from colakit.models.gpt.attention import Attention, GPT2Attention, KVCache, LlamaAttention
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.layers import MLP, GatedMLP, RMSNorm, rotary_frequencies, rotation


class Block(nn.Module):
    """Pre-norm transformer block; its methods take the layouts that `Attention`'s do."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.residual_dropout)  # of both branches

    def parts(self) -> tuple[nn.Module, Attention, nn.Module, nn.Module]:
        """Return the norm of the attention, the attention, the norm of the MLP, and the MLP."""
        raise NotImplementedError

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Return (B, T, D) for padded sentences (B, T, D)."""
        norm, attention, *_ = self.parts()
        return self._residual(x, attention(norm(x), rotation))

    def forward_last(self, x: Tensor, last: Tensor, rotation: Rotation | None) -> Tensor:
        """Return (B, D), the output at index `last` (B,) of each padded sentence in `x` (B, T, D)."""
        norm, attention, *_ = self.parts()
        attended = attention.forward_last(norm(x), last, rotation)
        return self._residual(x[torch.arange(len(last), device=x.device), last], attended)

    def forward_packed(
        self, x: Tensor, starts: Tensor, rotation: Rotation | None, rows: Tensor | None = None
    ) -> Tensor:
        """Return (N, D) for packed sentences (N, D); with `rows` (B,), only these rows of it, (B, D)."""
        norm, attention, *_ = self.parts()
        attended = attention.forward_packed(norm(x), starts, rotation, rows)
        return self._residual(x if rows is None else x[rows], attended)

    def forward_cached(self, x: Tensor, cache: KVCache, rotation: Rotation | None) -> Tensor:
        """Return (B, T, D) for new tokens (B, T, D)."""
        norm, attention, *_ = self.parts()
        return self._residual(x, attention.forward_cached(norm(x), cache, rotation))

    def _residual(self, x: Tensor, attended: Tensor) -> Tensor:
        *_, norm, mlp = self.parts()
        x = self.dropout.add_to(x, attended)
        return self.dropout.add_to(x, mlp(norm(x)))


class GPT2Block(Block):
    """Block with GPT-2's names."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config)
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(config)

    def parts(self) -> tuple[nn.Module, Attention, nn.Module, nn.Module]:
        """As `Block.parts`."""
        return self.ln_1, self.attn, self.ln_2, self.mlp


class LlamaBlock(Block):
    """Block with Llama's names."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config)
        self.input_layernorm = RMSNorm(config.width, eps=config.norm_epsilon)
        self.self_attn = LlamaAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, eps=config.norm_epsilon)
        self.mlp = GatedMLP(config)

    def parts(self) -> tuple[nn.Module, Attention, nn.Module, nn.Module]:
        """As `Block.parts`."""
        return self.input_layernorm, self.self_attn, self.post_attention_layernorm, self.mlp


class Transformer(nn.Module):
    """The body that both heads share: embeddings, blocks, final norm.

    An argument `states` (B, T, D), output of `frozen_states`, skips embeddings and frozen blocks.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.drop = Dropout(config.embedding_dropout)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, in order."""
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        raise NotImplementedError

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return the residual stream (…, D) fp32 of tokens at `positions`, both (…,)."""
        raise NotImplementedError

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Return the rotary embedding of `positions`; None for learnt positions."""
        raise NotImplementedError

    @property
    def num_frozen_blocks(self) -> int:
        """Number of leading frozen blocks (0 if embeddings train); never includes the last.

        Frozen blocks run without dropout in training, so their output for a sentence never changes.
        """
        number = 0
        embeddings = [module for module in self.children() if isinstance(module, nn.Embedding)]
        for module in (*embeddings, *self.blocks[:-1]):
            if any(parameter.requires_grad for parameter in module.parameters()):
                break
            number += isinstance(module, Block)
        return number

    def train(self, mode: bool = True) -> Transformer:
        """Set the training mode; embedding dropout and frozen blocks stay in evaluation mode."""
        super().train(mode)
        if frozen := self.num_frozen_blocks:
            self.drop.eval()
            self.blocks[:frozen].eval()
        return self

    def forward(self, input_ids: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the final hidden states (B, T, D) of padded sentences (B, T)."""
        x, blocks, rotation = self._start(input_ids, states)
        for block in blocks:
            x = block(x, rotation)
        return self.final_norm(x)

    def forward_last(self, input_ids: Tensor, last: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the final hidden state (B, D) at index `last` (B,) of each padded sentence (B, T).

        The sentences are packed if the C kernel supports them. The last block computes queries, keys and
        values of all tokens, and everything else of one token per sentence.
        """
        if can_pack(input_ids, last, self.config.num_heads, self.config.head_size, self.embedding.weight):
            return self._forward_packed(input_ids, last, states)
        x, (*blocks, final), rotation = self._start(input_ids, states)
        for block in blocks:
            x = block(x, rotation)
        return self.final_norm(final.forward_last(x, last, rotation))

    def _forward_packed(self, input_ids: Tensor, last: Tensor, states: Tensor | None) -> Tensor:
        """As `forward_last`. Padding after `last` is dropped, except up to 3 tokens for alignment."""
        padded = self._positions(0, input_ids).expand_as(input_ids)  # (B, T)
        ends = aligned_ends(last, input_ids.shape[1])
        kept = padded <= ends[:, None]
        starts = F.pad((ends + 1).cumsum(0), (1, 0))  # (B + 1,)
        positions = padded[kept]  # (N,)
        x = self.embed(input_ids[kept], positions) if states is None else states[kept]  # (N, D)
        rotation = self.rotation(positions)
        *blocks, final = self._blocks_after(states)
        for block in blocks:
            x = block.forward_packed(x, starts, rotation)
        return self.final_norm(final.forward_packed(x, starts, rotation, rows=starts[:-1] + last))

    def forward_cached(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the final hidden states (B, T, D) of new tokens (B, T), and add these to the cache."""
        positions = self._positions(cache.length, input_ids)
        x, rotation = self.embed(input_ids, positions), self.rotation(positions)
        for block in self._blocks_after(None):
            x = block.forward_cached(x, cache, rotation)
        cache.length += input_ids.shape[1]
        return self.final_norm(x)

    def frozen_states(self, input_ids: Tensor) -> Tensor:
        """Return the residual stream after the frozen blocks, (B, T, D) fp32, of padded sentences (B, T)."""
        x, _, rotation = self._start(input_ids, None)
        for block in self.blocks[: self.num_frozen_blocks]:
            x = block(x, rotation)
        return x

    def _start(self, input_ids: Tensor, states: Tensor | None) -> tuple[Tensor, list[Block], Rotation | None]:
        """Return the residual stream (B, T, D) to start from, the blocks that follow, and the rotation."""
        positions = self._positions(0, input_ids)
        x = self.embed(input_ids, positions) if states is None else states
        return x, self._blocks_after(states), self.rotation(positions)

    def _blocks_after(self, states: Tensor | None) -> list[Block]:
        return cast(
            list[Block], list(self.blocks if states is None else self.blocks[self.num_frozen_blocks :])
        )

    def _positions(self, start: int, input_ids: Tensor) -> Tensor:
        """Return the positions (T,) of `input_ids` (B, T)."""
        end = start + input_ids.shape[1]
        if end > self.config.num_positions:
            raise ValueError(f"sequence of {end} tokens; the model supports {self.config.num_positions}")
        return torch.arange(start, end, device=input_ids.device)


class GPT2Transformer(Transformer):
    """Body with GPT-2's names and learnt positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.num_positions, config.width)
        self.h = nn.ModuleList(GPT2Block(config, layer) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    @property
    def embedding(self) -> nn.Embedding:
        """As `Transformer.embedding`."""
        return self.wte

    @property
    def blocks(self) -> nn.ModuleList:
        """As `Transformer.blocks`."""
        return self.h

    @property
    def final_norm(self) -> nn.Module:
        """As `Transformer.final_norm`."""
        return self.ln_f

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """As `Transformer.embed`."""
        # the residual stream is fp32 whatever the weights' dtype: 12 blocks of bf16 sums would lose bits
        return self.drop((self.wte(input_ids) + self.wpe(positions)).float())

    def rotation(self, positions: Tensor) -> None:
        """As `Transformer.rotation`."""
        return None


class LlamaTransformer(Transformer):
    """Body with Llama's names and rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(LlamaBlock(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.width, eps=config.norm_epsilon)

    @property
    def embedding(self) -> nn.Embedding:
        """As `Transformer.embedding`."""
        return self.embed_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        """As `Transformer.blocks`."""
        return self.layers

    @property
    def final_norm(self) -> nn.Module:
        """As `Transformer.final_norm`."""
        return self.norm

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """As `Transformer.embed`."""
        return self.drop(self.embed_tokens(input_ids).float())

    def rotation(self, positions: Tensor) -> Rotation:
        """As `Transformer.rotation`."""
        return rotation(rotary_frequencies(self.config).to(positions.device), positions)


def make_transformer(config: GPTConfig) -> Transformer:
    """Return a body of the config's family, without initialised weights."""
    return GPT2Transformer(config) if config.family == "gpt2" else LlamaTransformer(config)
