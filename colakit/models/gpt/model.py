"""GPT-2 in plain linear layers (Radford et al. 2019), with a language-model head or a classification head.

Shapes: B batch, T tokens, N real tokens of a batch, D width, H heads, V vocabulary, C classes.

Parameter names are those of transformers (`transformer.h.0.attn.c_attn.weight`), so that adapters written
here and in PEFT name the same modules. Weights stand as `nn.Linear` keeps them, (out, in); GPT-2's files
keep (in, out), which `colakit.storage.gpt2` turns around.

Padding goes on the right. Attention is causal, so what stands right of a token never changes its state and
no attention mask is needed; the mask only tells where a sentence ends. Where attention is a kernel of ours, a
classifier trains without padding, or nearly: its sentences stand one after another, "packed".
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.attention import aligned_ends, can_pack
from colakit.kernels.fused import Dropout
from colakit.kernels.linear_cross_entropy import Weigh, linear_cross_entropy
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
        """Return (B, T, D) for (B, T, D)."""
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.residual_dropout)  # of both branches

    def forward(self, x: Tensor, cache: KVCache | None = None, last: Tensor | None = None) -> Tensor:
        """Return (B, T, D) for (B, T, D); with `last` (B,), (B, 1, D) for that position of each row."""
        attended = self.attn(self.ln_1(x), cache, last)
        if last is not None:
            x = x[torch.arange(len(last), device=x.device), last].unsqueeze(1)
        x = self.dropout.add_to(x, attended)
        return self.dropout.add_to(x, self.mlp(self.ln_2(x)))

    def packed(self, x: Tensor, starts: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) for (N, D), sentences one after another; with `rows` (B,), (B, D) for these alone."""
        attended = self.attn.packed(self.ln_1(x), starts, rows)
        x = self.dropout.add_to(x if rows is None else x[rows], attended)
        return self.dropout.add_to(x, self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """The body that both heads share: embeddings, blocks, final norm."""

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
        """Blocks at the bottom that hold nothing that trains, as the embeddings below; the last never counts.

        They have no dropout in training: what they make of a sentence stays the same all through it.
        """
        blocks, number = list(self.h[:-1]), 0
        for module in (self.wte, self.wpe, *blocks):
            if any(parameter.requires_grad for parameter in module.parameters()):
                break
            number += isinstance(module, Block)
        return number

    def train(self, mode: bool = True) -> Transformer:
        """Set the mode of all but the frozen blocks, which evaluate."""
        super().train(mode)
        if frozen := self.num_frozen_blocks:
            self.drop.eval()
            self.h[:frozen].eval()
        return self

    def frozen_states(self, input_ids: Tensor) -> Tensor:
        """Return what the frozen blocks make of `input_ids` (B, T): the residual stream (B, T, D), fp32."""
        x = self._embedded(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.h[: self.num_frozen_blocks]:
            x = block(x)
        return x

    def _embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        # the residual stream is fp32 whatever the weights are stored in: 12 blocks of bf16 sums lose bits
        return self.drop((self.wte(input_ids) + self.wpe(positions)).float())

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        last: Tensor | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden states (B, T, D) of `input_ids` (B, T).

        With `last` (B,): return (B, D), the state at that position of each row. The last block then computes
        queries, keys and values for all tokens, but all else for one. With `states` (B, T, D), which are the
        `frozen_states`, what is below is not computed again.
        """
        start = cache.length if cache is not None else 0
        end = start + input_ids.shape[1]
        if end > self.config.num_positions:
            raise ValueError(f"sequence of {end} tokens; the model holds {self.config.num_positions}")
        if (
            last is not None
            and cache is None
            and can_pack(input_ids, last, self.config.num_heads, self.wte.weight)
        ):
            return self._packed(input_ids, last, states)
        if states is None:
            x = self._embedded(input_ids, torch.arange(start, end, device=input_ids.device))
        else:
            x = states
        final = self.h[-1]
        for block in self._blocks_above(states):
            x = block(x, cache, last if block is final else None)
        if cache is not None:
            cache.length = end
        return self.ln_f(x if last is None else x.squeeze(1))

    def _blocks_above(self, states: Tensor | None) -> list[Block]:
        return cast(list[Block], list(self.h if states is None else self.h[self.num_frozen_blocks :]))

    def _packed(self, input_ids: Tensor, last: Tensor, states: Tensor | None) -> Tensor:
        """Return the state (B, D) at `last` (B,); of what stands behind it in (B, T), next to nothing is."""
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)  # (B, T)
        ends = aligned_ends(last, input_ids.shape[1])
        kept = positions <= ends[:, None]
        starts = F.pad((ends + 1).cumsum(0), (1, 0))  # (B + 1,)
        x = self._embedded(input_ids[kept], positions[kept]) if states is None else states[kept]  # (N, D)
        *blocks, final = self._blocks_above(states)
        for block in blocks:
            x = block.packed(x, starts)
        return self.ln_f(final.packed(x, starts, starts[:-1] + last))

    def language_model(self) -> GPT:
        """Return a language model on this very body (shared, not copied)."""
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
        initialise(self)

    def forward(
        self, input_ids: Tensor, cache: KVCache | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Return next-token logits (B, T, V) for `input_ids` (B, T).

        With `targets` (B, T), the next tokens themselves, -100 where one does not count: return their
        cross-entropy instead, summed, in nats. That never holds all logits at once.
        """
        hidden = self.transformer(input_ids, cache)
        if targets is None:
            return self.lm_logits(hidden)
        return linear_cross_entropy(hidden, self.transformer.wte.weight, targets)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Return logits (…, V) of final hidden states (…, D)."""
        return F.linear(hidden, self.transformer.wte.weight)

    def classifier(self, num_labels: int) -> GPTClassifier:
        """Return a classifier on this very body (shared, not copied) with a fresh head."""
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
        targets: Tensor | None = None,
        weigh: Weigh = torch.sum,
        group: int = 1,
        states: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return class logits (B, C), fp32.

        Args:
            input_ids: (B, T) int64, padded on the right with any token.
            attention_mask: (B, T), 1 at real tokens; every row has at least one.
            targets: (B, T-1) next tokens; with them, also return what `weigh` makes of the sentences' nats
                (their sum, where none is given), which sees `group` consecutive sentences together.
            states: (B, T, D), the `Transformer.frozen_states`, where they are at hand.
        """
        if targets is not None:
            last = attention_mask.sum(dim=1) - 1  # (B,)
            hidden = self.transformer(input_ids, states=states)  # (B, T, D)
            logits = self.score(hidden[torch.arange(len(last), device=last.device), last]).float()
            words = self.transformer.wte.weight
            return logits, linear_cross_entropy(hidden[:, :-1], words, targets, weigh, group)
        return self.score(self.pooled(input_ids, attention_mask, states)).float()

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the state (B, D) of the last real token, which the head reads."""
        return self.transformer(input_ids, last=attention_mask.sum(dim=1) - 1, states=states)


def num_frozen_blocks(model: nn.Module) -> int:
    """Return `Transformer.num_frozen_blocks` of the body in `model`, 0 where it has none."""
    return sum(module.num_frozen_blocks for module in model.modules() if isinstance(module, Transformer))


def initialise(model: nn.Module) -> None:
    """Draw weights as GPT-2 did: N(0, 0.02²), residual projections by 0.02/√(2·layers), biases zero."""
    num_layers = sum(isinstance(module, Block) for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith("c_proj")
            nn.init.normal_(module.weight, std=0.02 / (2 * num_layers) ** 0.5 if residual else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of a GPT, in embeddings, attention and residual branches, to one probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(module, Attention):
            module.dropout = probability
