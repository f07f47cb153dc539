"""An embedding with only some rows trainable.

Shapes: V tokens, S trained rows, E embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartialEmbedding(nn.Module):
    """An embedding split into a trained part `weight` (S, E) and a frozen part `frozen` (V - S, E).

    Rows that no training sentence contains have zero gradients, which would still be summed, clipped and
    stepped over: CoLA contains a tenth of GPT-2's 50,257 tokens. Adam updates the S rows as it would within
    the full matrix; weight decay leaves the frozen rows alone.

    `state_dict()` has one tensor `weight` (V, E), as an `nn.Embedding` has; it cannot be loaded back.

    Args:
        embedding: V rows; they are copied.
        trained: (S,) int64, distinct rows to train, in any order.
    """

    def __init__(self, embedding: nn.Embedding, trained: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        is_frozen = torch.ones(self.num_embeddings, dtype=torch.bool)
        is_frozen[trained] = False
        order = torch.cat([trained, is_frozen.nonzero()[:, 0]])
        rows = embedding.weight.detach()[order]
        self.weight = nn.Parameter(rows[: len(trained)].clone())
        self.frozen = nn.Parameter(rows[len(trained) :].clone(), requires_grad=False)
        self.position: Tensor  # (V,): a token's row in cat([weight, frozen])
        self.register_buffer("position", order.argsort(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows (…, E) of tokens (…)."""
        position, num_trained = self.position[input_ids], len(self.weight)
        if num_trained in (0, self.num_embeddings):
            return F.embedding(position, self.weight if num_trained else self.frozen)
        trained = F.embedding(position.clamp(max=num_trained - 1), self.weight)
        frozen = F.embedding((position - num_trained).clamp(min=0), self.frozen)
        return torch.where((position < num_trained)[..., None], trained, frozen)

    def full_weight(self) -> Tensor:
        """Return all rows (V, E) in token order."""
        return torch.cat([self.weight, self.frozen])[self.position]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.full_weight()
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()
