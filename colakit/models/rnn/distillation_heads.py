"""A student with auxiliary heads for training: hidden-state matching and neighbouring-token prediction.

The heads are not saved with the model.

Shapes: B batch, T tokens, H hidden width per direction, W pooled width, D teacher width, E embedding width,
C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from colakit.kernels.linear_cross_entropy import IGNORE_INDEX, linear_cross_entropy
from colakit.models.rnn.model import DistilRNN, in_fp32
from colakit.models.rnn.partial_embedding import PartialEmbedding


class StudentOutput(NamedTuple):
    """Output of a student in training.

    Attributes:
        logits: (B, C).
        hidden: (B, D), prediction of the teacher's last hidden state; None without that head.
        nll: summed cross-entropy of all neighbouring tokens; None without those heads.
    """

    logits: Tensor
    hidden: Tensor | None = None
    nll: Tensor | None = None


class StudentWithHeads(nn.Module):
    """A student with heads for its auxiliary losses.

    The token heads follow Rei 2017 (arXiv:1704.07156, §3): from the first layer's states, the forward
    direction predicts the next token and the backward direction the previous one. Output weights are tied to
    the embedding; with a `PartialEmbedding`, only its trained rows are candidates.

    Args:
        teacher_width: D, for hidden-state matching; None adds no such head.
        predicts_tokens: whether to predict neighbouring tokens.
    """

    def __init__(
        self, student: DistilRNN, *, teacher_width: int | None = None, predicts_tokens: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        config = student.config
        width = student.score.in_features
        self.to_hidden = nn.Linear(width, teacher_width) if teacher_width is not None else None
        self.to_tokens = nn.ModuleList(
            nn.Linear(config.hidden_size, config.embedding_size)
            for _ in range(config.directions if predicts_tokens else 0)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> StudentOutput:
        """Return logits and auxiliary outputs for (B, T) tokens; arguments as in `DistilRNN.forward`."""
        encoding = self.student.encode(input_ids, attention_mask)
        logits = self.student.classify(encoding.pooled)
        with in_fp32(input_ids.device.type):
            hidden = self.to_hidden(encoding.pooled) if self.to_hidden is not None else None
        nll = self._token_nll(encoding.first, encoding.rows, attention_mask) if self.to_tokens else None
        return StudentOutput(logits, hidden, nll)

    def _token_nll(self, states: Tensor, rows: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the summed cross-entropy of real tokens' neighbours, from (B, T, H·directions) states."""
        hidden_size = self.student.config.hidden_size
        embedding = self.student.embedding
        indices = embedding.position[rows] if isinstance(embedding, PartialEmbedding) else rows
        targets = indices.masked_fill(attention_mask == 0, IGNORE_INDEX)
        if self.student.config.num_embeddings is not None:
            targets = targets.masked_fill(rows == 0, IGNORE_INDEX)  # row 0 is shared by the rare tokens
        next_is_padding = attention_mask[:, 1:] == 0
        previous = targets[:, :-1].masked_fill(next_is_padding, IGNORE_INDEX)
        views = ((states[:, :-1, :hidden_size], targets[:, 1:]), (states[:, 1:, hidden_size:], previous))
        total = states.new_zeros(())
        for head, (states_of_direction, neighbours) in zip(self.to_tokens, views, strict=False):
            predicted = head(states_of_direction)  # (B, T-1, E)
            total = total + linear_cross_entropy(predicted, embedding.weight, neighbours)
        return total
