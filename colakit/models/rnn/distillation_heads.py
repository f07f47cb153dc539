"""A student in training: with the heads that its auxiliary losses need, and that no checkpoint keeps.

Shapes: B batch, T tokens, H width of a direction's state, W of the pooled state, D of the teacher's, E of the
embedding, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from colakit.kernels.linear_cross_entropy import IGNORE_INDEX, linear_cross_entropy
from colakit.models.rnn.model import DistilRNN, in_fp32
from colakit.models.rnn.partial_embedding import PartEmbedding


class Answer(NamedTuple):
    """What a model says of a batch, and what it knows besides.

    Attributes:
        logits: (B, C).
        hidden: (B, D), its guess at the teacher's last hidden state; None where that is not wanted.
        nats: cross-entropy of all neighbouring tokens, summed; None where that is not wanted.
    """

    logits: Tensor
    hidden: Tensor | None = None
    nats: Tensor | None = None


class StudentWithHeads(nn.Module):
    """A student that also learns what its teacher's state is, or which tokens stand beside each other.

    The token objective is that of Rei 2017 (arXiv:1704.07156, §3): the forward direction predicts the next
    token, the backward one the token before, from the first layer's states, through the embedding; where a
    part of its rows trains, among their tokens.

    Args:
        teacher_width: D, to match hidden states; None does not.
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        """Return the student's answer for (B, T) tokens, as `DistilRNN.forward` takes them."""
        reading = self.student.read(input_ids, attention_mask)
        logits = self.student.answer(reading.pooled)
        with in_fp32(input_ids.device.type):
            hidden = self.to_hidden(reading.pooled) if self.to_hidden is not None else None
        nats = self._nats(reading.first, reading.rows, attention_mask) if self.to_tokens else None
        return Answer(logits, hidden, nats)

    def _nats(self, states: Tensor, rows: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the cross-entropy of each real token's neighbours, given (B, T, H·directions) states."""
        size = self.student.config.hidden_size
        embedding = self.student.embedding
        numbers = embedding.place[rows] if isinstance(embedding, PartEmbedding) else rows
        known = numbers.masked_fill(attention_mask == 0, IGNORE_INDEX)
        if self.student.config.num_embeddings is not None:
            known = known.masked_fill(rows == 0, IGNORE_INDEX)  # nothing is learnt from "some rare token"
        before = known[:, :-1].masked_fill(
            attention_mask[:, 1:] == 0, IGNORE_INDEX
        )  # padding has none before it
        views = ((states[:, :-1, :size], known[:, 1:]), (states[:, 1:, size:], before))
        total = states.new_zeros(())
        for head, (seen, targets) in zip(self.to_tokens, views, strict=False):
            guesses = head(seen)  # (B, T-1, E)
            total = total + linear_cross_entropy(guesses, embedding.weight, targets)
        return total
