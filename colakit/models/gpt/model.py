"""Decoder-only transformers with a language-model head or a classification head.

GPT-2 (Radford et al. 2019) and the Llama family (Touvron et al. 2023, arXiv:2302.13971). Shapes: B batch,
T tokens, D width, V vocabulary, C classes.

Parameter names are those of transformers (`transformer.h.0.attn.c_attn.weight`,
`model.layers.0.self_attn.q_proj.weight`), so that adapters of colakit and PEFT name the same modules. Weights
are `nn.Linear`'s (out, in); GPT-2's files have (in, out), which `colakit.storage.gpt2` transposes.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.errors import ColakitError
from colakit.kernels.linear_cross_entropy import Reduce, linear_cross_entropy
from colakit.models.gpt.attention import Attention
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.transformer import Block, Transformer, make_transformer
from colakit.models.meta_device import without_weights


class GPT(nn.Module):
    """Language model; the output layer is the token embedding, or `lm_head` if these are not tied."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        setattr(self, config.body_name, make_transformer(config))
        if not config.tied_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        init_weights(self)

    @property
    def body(self) -> Transformer:
        """Everything but the output layer."""
        return cast(Transformer, getattr(self, self.config.body_name))

    @property
    def output_weight(self) -> Tensor:
        """Weight (V, D) of the output layer.

        Raises:
            ColakitError: if it was not in the files, which happens with a classifier of another program.
        """
        if self.config.tied_embeddings:
            return self.body.embedding.weight
        if not hasattr(self, "lm_head"):
            raise ColakitError(
                "the model has no output layer (lm_head), so it cannot predict tokens",
                hint="Name a language model with --base.",
            )
        return self.lm_head.weight

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return next-token logits (B, T, V) for `input_ids` (B, T).

        With `targets` (B, T), the next tokens or -100 to ignore one: return their summed cross-entropy
        instead, in nats, without ever holding all logits.
        """
        hidden = self.body(input_ids)
        if targets is None:
            return self.lm_logits(hidden)
        return linear_cross_entropy(hidden, self.output_weight, targets)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Return logits (…, V) of final hidden states (…, D)."""
        return F.linear(hidden, self.output_weight)

    def classifier(self, num_labels: int) -> GPTClassifier:
        """Return a classifier that shares this body, with a new head."""
        return GPTClassifier(self.body, num_labels)


class GPTClassifier(nn.Module):
    """Classifier with a bias-free head `score` on the last real token, as transformers' classes have it."""

    def __init__(self, transformer: Transformer, num_labels: int) -> None:
        super().__init__()
        self.config = transformer.config
        self.num_labels = num_labels
        setattr(self, self.config.body_name, transformer)
        self.score = nn.Linear(transformer.config.width, num_labels, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    @property
    def body(self) -> Transformer:
        """Everything but the head."""
        return cast(Transformer, getattr(self, self.config.body_name))

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
                They require tied embeddings.
            reduce: as in `linear_cross_entropy`.
        """
        if targets is None:
            return self.score(self.pooled(input_ids, attention_mask, states)).float()
        assert self.config.tied_embeddings
        last = attention_mask.sum(dim=1) - 1  # (B,)
        hidden = self.body(input_ids, states)  # (B, T, D)
        logits = self.score(hidden[torch.arange(len(last), device=last.device), last]).float()
        hidden = hidden[:, :-1].unflatten(0, targets.shape[:-1])  # (…, T-1, D)
        return logits, linear_cross_entropy(hidden, self.body.embedding.weight, targets, reduce)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor | None = None) -> Tensor:
        """Return the hidden state (B, D) of the last real token, the input of the head."""
        return self.body.forward_last(input_ids, attention_mask.sum(dim=1) - 1, states)

    def language_model(self) -> GPT:
        """Return a language model that shares this body.

        Its output layer is missing if it is not the token embedding.
        """
        with without_weights():
            model = GPT(self.config)
        setattr(model, self.config.body_name, self.body)
        if not self.config.tied_embeddings:
            del model.lm_head
        return model


def num_frozen_blocks(model: nn.Module) -> int:
    """Return `Transformer.num_frozen_blocks` of the body in `model`, 0 without one."""
    return sum(module.num_frozen_blocks for module in model.modules() if isinstance(module, Transformer))


def init_weights(model: nn.Module) -> None:
    """Initialise as GPT-2: N(0, 0.02²), residual projections with 0.02/√(2·layers), biases zero."""
    num_layers = sum(isinstance(module, Block) for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith(("c_proj", "o_proj", "down_proj"))
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
