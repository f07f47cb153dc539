"""GPT-2 in plain linear layers (Radford et al. 2019), with a language-model head or a classification head.

Shapes: B batch, T tokens, N rows (the tokens of packed sentences), D width, V vocabulary, C classes.

Parameter names are those of transformers (`transformer.h.0.attn.c_attn.weight`), so that adapters of colakit
and PEFT name the same modules. Weights are `nn.Linear`'s (out, in); GPT-2's files have (in, out), which
`colakit.storage.gpt2` transposes.

Three layouts of the tokens, each with its own `forward…` method:

- padded (B, T, D): padding is on the right. Causal attention hides it from real tokens, so no attention mask
  is needed.
- packed (N, D): sentences concatenated, without padding. Faster classification on a CPU; needs the C kernel.
- cached (B, T, D): new tokens only; earlier keys and values come from a `KVCache`.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import aligned_ends, can_pack
from colakit.kernels.fused import Dropout
from colakit.kernels.linear_cross_entropy import Reduce, linear_cross_entropy
from colakit.kernels.matmul import Linear
from colakit.models.gpt.attention import Attention, KVCache
from colakit.models.gpt.config import ACTIVATIONS, GPTConfig
from colakit.models.meta_device import without_weights


class MLP(nn.Module):
    """Position-wise feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner = config.mlp_width or 4 * config.width
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = Linear(config.width, inner)
        self.c_proj = Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, D)."""
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm transformer block; its methods take the layouts that `Attention`'s do."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.residual_dropout)  # of both branches

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for padded sentences (B, T, D)."""
        return self._residual(x, self.attn(self.ln_1(x)))

    def forward_last(self, x: Tensor, last: Tensor) -> Tensor:
        """Return (B, D), the output at index `last` (B,) of each padded sentence in `x` (B, T, D)."""
        attended = self.attn.forward_last(self.ln_1(x), last)
        return self._residual(x[torch.arange(len(last), device=x.device), last], attended)

    def forward_packed(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) for packed sentences (N, D); with `rows` (B,), only these rows of it, (B, D)."""
        attended = self.attn.forward_packed(self.ln_1(x), starts, rows)
        return self._residual(x if rows is None else x[rows], attended)

    def forward_cached(self, x: Tensor, cache: KVCache) -> Tensor:
        """Return (B, T, D) for new tokens (B, T, D)."""
        return self._residual(x, self.attn.forward_cached(self.ln_1(x), cache))

    def _residual(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.dropout.add_to(x, attended)
        return self.dropout.add_to(x, self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """The body that both heads share: embeddings, blocks, final norm.

    An argument `states` (B, T, D), output of `frozen_states`, skips embeddings and frozen blocks.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.num_positions, config.width)
        self.drop = Dropout(config.embedding_dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)

    @property
    def num_frozen_blocks(self) -> int:
        """Number of leading frozen blocks (0 if embeddings train); never includes the last.

        Frozen blocks run without dropout in training, so their output for a sentence never changes.
        """
        number = 0
        for module in (self.wte, self.wpe, *self.h[:-1]):
            if any(parameter.requires_grad for parameter in module.parameters()):
                break
            number += isinstance(module, Block)
        return number

    def train(self, mode: bool = True) -> Transformer:
        """Set the training mode; embedding dropout and frozen blocks stay in evaluation mode."""
        super().train(mode)
        if frozen := self.num_frozen_blocks:
            self.drop.eval()
            self.h[:frozen].eval()
        return self

    def forward(self, input_ids: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the final hidden states (B, T, D) of padded sentences (B, T)."""
        x, blocks = self._start(input_ids, states)
        for block in blocks:
            x = block(x)
        return self.ln_f(x)

    def forward_last(self, input_ids: Tensor, last: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the final hidden state (B, D) at index `last` (B,) of each padded sentence (B, T).

        The sentences are packed if the C kernel supports them. The last block computes queries, keys and
        values of all tokens, and everything else of one token per sentence.
        """
        if can_pack(input_ids, last, self.config.num_heads, self.wte.weight):
            return self._forward_packed(input_ids, last, states)
        x, (*blocks, final) = self._start(input_ids, states)
        for block in blocks:
            x = block(x)
        return self.ln_f(final.forward_last(x, last))

    def _forward_packed(self, input_ids: Tensor, last: Tensor, states: Tensor | None) -> Tensor:
        """As `forward_last`. Padding after `last` is dropped, except up to 3 tokens for alignment."""
        positions = self._positions(0, input_ids).expand_as(input_ids)  # (B, T)
        ends = aligned_ends(last, input_ids.shape[1])
        kept = positions <= ends[:, None]
        starts = F.pad((ends + 1).cumsum(0), (1, 0))  # (B + 1,)
        x = self._embed(input_ids[kept], positions[kept]) if states is None else states[kept]  # (N, D)
        *blocks, final = self._blocks_after(states)
        for block in blocks:
            x = block.forward_packed(x, starts)
        return self.ln_f(final.forward_packed(x, starts, rows=starts[:-1] + last))

    def forward_cached(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the final hidden states (B, T, D) of new tokens (B, T), and add these to the cache."""
        x = self._embed(input_ids, self._positions(cache.length, input_ids))
        for block in self._blocks_after(None):
            x = block.forward_cached(x, cache)
        cache.length += input_ids.shape[1]
        return self.ln_f(x)

    def frozen_states(self, input_ids: Tensor) -> Tensor:
        """Return the residual stream after the frozen blocks, (B, T, D) fp32, of padded sentences (B, T)."""
        x = self._embed(input_ids, self._positions(0, input_ids))
        for block in self.h[: self.num_frozen_blocks]:
            x = block(x)
        return x

    def _start(self, input_ids: Tensor, states: Tensor | None) -> tuple[Tensor, list[Block]]:
        """Return the residual stream (B, T, D) to start from, and the blocks that follow."""
        positions = self._positions(0, input_ids)
        return self._embed(input_ids, positions) if states is None else states, self._blocks_after(states)

    def _blocks_after(self, states: Tensor | None) -> list[Block]:
        return cast(list[Block], list(self.h if states is None else self.h[self.num_frozen_blocks :]))

    def _positions(self, start: int, input_ids: Tensor) -> Tensor:
        """Return the positions (T,) of `input_ids` (B, T)."""
        end = start + input_ids.shape[1]
        if end > self.config.num_positions:
            raise ValueError(f"sequence of {end} tokens; the model supports {self.config.num_positions}")
        return torch.arange(start, end, device=input_ids.device)

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        # the residual stream is fp32 whatever the weights' dtype: 12 blocks of bf16 sums would lose bits
        return self.drop((self.wte(input_ids) + self.wpe(positions)).float())

    def language_model(self) -> GPT:
        """Return a language model that shares this body."""
        with without_weights():
            model = GPT(self.config)
        model.transformer = self
        return model


class GPT(nn.Module):
    """GPT-2 as a language model; the output layer is the token embedding (tied)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        init_weights(self)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return next-token logits (B, T, V) for `input_ids` (B, T).

        With `targets` (B, T), the next tokens or -100 to ignore one: return their summed cross-entropy
        instead, in nats, without ever holding all logits.
        """
        hidden = self.transformer(input_ids)
        if targets is None:
            return self.lm_logits(hidden)
        return linear_cross_entropy(hidden, self.transformer.wte.weight, targets)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Return logits (…, V) of final hidden states (…, D)."""
        return F.linear(hidden, self.transformer.wte.weight)

    def classifier(self, num_labels: int) -> GPTClassifier:
        """Return a classifier that shares this body, with a new head."""
        return GPTClassifier(self.transformer, num_labels)


class GPTClassifier(nn.Module):
    """GPT-2 with a bias-free head `score` on the last real token, as in `GPT2ForSequenceClassification`."""

    def __init__(self, transformer: Transformer, num_labels: int) -> None:
        super().__init__()
        self.config = transformer.config
        self.num_labels = num_labels
        self.transformer = transformer
        self.score = nn.Linear(transformer.config.width, num_labels, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor | None = None,
        targets: Tensor | None = None,
        reduce: Reduce = torch.sum,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return class logits (B, C), fp32; with `targets`, also a language-model loss.

        Args:
            input_ids: (B, T) int64, padded on the right with any token.
            attention_mask: (B, T), 1 at real tokens; every row has at least one.
            states: (B, T, D), `Transformer.frozen_states` if already computed.
            targets: next tokens, (B, T-1), or (B/2, 2, T-1) for pairs of sentences; -100 to ignore one.
            reduce: as in `linear_cross_entropy`.
        """
        if targets is None:
            return self.score(self.pooled(input_ids, attention_mask, states)).float()
        last = attention_mask.sum(dim=1) - 1  # (B,)
        hidden = self.transformer(input_ids, states)  # (B, T, D)
        logits = self.score(hidden[torch.arange(len(last), device=last.device), last]).float()
        hidden = hidden[:, :-1].unflatten(0, targets.shape[:-1])  # (…, T-1, D)
        return logits, linear_cross_entropy(hidden, self.transformer.wte.weight, targets, reduce)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the hidden state (B, D) of the last real token, the input of the head."""
        return self.transformer.forward_last(input_ids, attention_mask.sum(dim=1) - 1, states)


def num_frozen_blocks(model: nn.Module) -> int:
    """Return `Transformer.num_frozen_blocks` of the body in `model`, 0 without one."""
    return sum(module.num_frozen_blocks for module in model.modules() if isinstance(module, Transformer))


def init_weights(model: nn.Module) -> None:
    """Initialise as GPT-2: N(0, 0.02²), residual projections with 0.02/√(2·layers), biases zero."""
    num_layers = sum(isinstance(module, Block) for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith("c_proj")
            nn.init.normal_(module.weight, std=0.02 / (2 * num_layers) ** 0.5 if residual else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout probability of embeddings, attention and residual branches."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(module, Attention):
            module.dropout = probability
