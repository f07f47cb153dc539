"""An embedding of which only the rows that training reads are trained.

Shapes: V tokens, S of them trained, E embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartEmbedding(nn.Module):
    """An embedding in two parts: `weight` (S, E), which trains, and `others` (V - S, E), which stay.

    A row that training never reads has no gradient, and yet its zeros are added up, clipped and stepped over
    with the rest: of GPT-2's 50,257 rows, CoLA reads a tenth. Adam moves the S rows as within the whole.
    The others it leaves alone, and so does weight decay, which would shrink them.

    `state_dict()` gives the state of the `nn.Embedding` it stands for, one tensor `weight` (V, E). It is for
    files, and not read back into two parts.

    Args:
        whole: V rows; they are copied.
        trained: (S,) int64, the different rows that training reads, in any order.
    """

    def __init__(self, whole: nn.Embedding, trained: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = whole.num_embeddings, whole.embedding_dim
        is_other = torch.ones(self.num_embeddings, dtype=torch.bool)
        is_other[trained] = False
        order = torch.cat([trained, is_other.nonzero()[:, 0]])
        rows = whole.weight.detach()[order]
        self.weight = nn.Parameter(rows[: len(trained)].clone())
        self.others = nn.Parameter(rows[len(trained) :].clone(), requires_grad=False)
        self.place: Tensor  # (V,): where a token's row stands in both parts, one after the other
        self.register_buffer("place", order.argsort(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows (…, E) of tokens (…)."""
        place, known = self.place[input_ids], len(self.weight)
        if known in (0, self.num_embeddings):
            return F.embedding(place, self.weight if known else self.others)
        trained = F.embedding(place.clamp(max=known - 1), self.weight)
        others = F.embedding((place - known).clamp(min=0), self.others)
        return torch.where((place < known)[..., None], trained, others)

    def whole(self) -> Tensor:
        """Return all rows (V, E), in the order of the tokens."""
        return torch.cat([self.weight, self.others])[self.place]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        whole = self.whole()
        destination[prefix + "weight"] = whole if keep_vars else whole.detach()
