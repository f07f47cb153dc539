"""The student: embedding → RNN, GRU or LSTM → masked pooling → linear.

Shapes: B batch, T tokens, E embedding width, H hidden width, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.partial_embedding import PartEmbedding

CELL_MODULES: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}


class Reading(NamedTuple):
    """What the recurrent layers make of a batch.

    Attributes:
        rows: (B, T), the embedding's row of each token.
        first: (B, T, W), states of the first layer.
        pooled: (B, W), the sentence.
    """

    rows: Tensor
    first: Tensor
    pooled: Tensor


class DistilRNN(nn.Module):
    """A small recurrent classifier whose logits padding never changes.

    The backward direction reads each sentence reversed within its own length (one gather), so it never
    starts in padding. That needs no packed sequences, which no export format knows.
    """

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        width = config.hidden_size * config.directions
        whole = nn.Embedding(config.num_embeddings or config.vocab_size, config.embedding_size)
        self.embedding: nn.Embedding | PartEmbedding = whole
        self.row_of_token: Tensor | None
        shared = None if config.num_embeddings is None else torch.zeros(config.vocab_size, dtype=torch.int32)
        self.register_buffer("row_of_token", shared)
        cell = CELL_MODULES[config.cell]
        self.layers = nn.ModuleList(
            nn.ModuleList(
                cell(width if layer else config.embedding_size, config.hidden_size, batch_first=True)
                for _ in range(config.directions)
            )
            for layer in range(config.num_layers)
        )
        self.attention = nn.Linear(width, 1) if config.pooling == "attention" else None
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, config.num_labels)
        nn.init.normal_(whole.weight, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits (B, C), fp32.

        Args:
            input_ids: (B, T) int64, padded on the right with any token.
            attention_mask: (B, T), 1 at real tokens; every row has at least one.
        """
        return self.answer(self.read(input_ids, attention_mask).pooled)

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Reading:
        """Return the states of (B, T) tokens, and the sentences they make up, all fp32."""
        lengths = attention_mask.sum(dim=1)  # (B,)
        reverse = self.reversal(lengths, input_ids.shape[1])  # (B, T)
        rows = self.rows(input_ids)
        states, x = [], self.embedding(rows)  # (B, T, E)
        for layer in self.layers:
            with self._recurrent_precision(x.device.type):
                x = self._run_layer(layer, self.dropout(x), reverse).float()
            states.append(x)
        with in_fp32(x.device.type):
            return Reading(rows, states[0], self.pool(x, attention_mask, lengths))

    def _recurrent_precision(self, device: str) -> contextlib.AbstractContextManager[object]:
        """Return the session of the recurrent layers: the caller's in training on a CPU, else fp32.

        They are most of a training step there, and a CPU that multiplies bf16 is sooner done with them
        (docs/performance.md). A student's answers are always computed in fp32.
        """
        return contextlib.nullcontext() if self.training and device == "cpu" else in_fp32(device)

    def rows(self, input_ids: Tensor) -> Tensor:
        """Return the embedding's row of each token, in the shape of `input_ids`, int64."""
        return input_ids if self.row_of_token is None else self.row_of_token[input_ids].long()

    def answer(self, pooled: Tensor) -> Tensor:
        """Return class logits (B, C) of (B, W) sentences."""
        with in_fp32(pooled.device.type):
            return self.score(self.dropout(pooled))

    def check_rows(self) -> None:
        """Raise `ValueError` where a token's row is none of the embedding's."""
        rows = self.row_of_token
        if rows is not None and not bool(((rows >= 0) & (rows < self.embedding.num_embeddings)).all()):
            raise ValueError("row_of_token points beyond the embedding")

    def embed_only(self, tokens: Sequence[int]) -> None:
        """Give `tokens` rows of their own, from 1 on; all others share row 0."""
        assert self.row_of_token is not None
        self.row_of_token.zero_()
        self.row_of_token[torch.tensor(tokens)] = torch.arange(1, len(tokens) + 1, dtype=torch.int32)

    def train_rows(self, tokens: Tensor) -> None:
        """Let the embedding's rows of `tokens` (N,) train, and no others."""
        assert isinstance(self.embedding, nn.Embedding)
        self.embedding = PartEmbedding(self.embedding, self.rows(tokens).unique())

    @staticmethod
    def reversal(lengths: Tensor, tokens: int) -> Tensor:
        """Return indices (B, T) that reverse each row within its length and leave padding in place."""
        position = torch.arange(tokens, device=lengths.device)[None, :]
        mirrored = lengths[:, None] - 1 - position
        return torch.where(mirrored >= 0, mirrored, position)

    @staticmethod
    def _run_layer(layer: nn.Module, x: Tensor, reverse: Tensor) -> Tensor:
        directions = list(layer.children())
        states = directions[0](x)[0]  # (B, T, H)
        if len(directions) == 1:
            return states
        backward = directions[1](_take_tokens(x, reverse))[0]
        return torch.cat([states, _take_tokens(backward, reverse)], dim=-1)  # (B, T, 2H)

    def pool(self, states: Tensor, attention_mask: Tensor, lengths: Tensor) -> Tensor:
        """Return the sentences (B, W) that (B, T, W) states make up.

        Args:
            attention_mask: (B, T), 1 at real tokens.
            lengths: (B,), their number.
        """
        real = attention_mask.bool()[:, :, None]  # (B, T, 1)
        match self.config.pooling:
            case "mean":
                return (states * real).sum(dim=1) / lengths[:, None]
            case "max":
                return states.masked_fill(~real, -torch.inf).amax(dim=1)
            case "attention":
                assert self.attention is not None
                weights = self.attention(states).masked_fill(~real, -torch.inf).softmax(dim=1)
                return (weights * states).sum(dim=1)
        hidden = self.config.hidden_size  # `last`: each direction's state once it has read everything
        forward = states[torch.arange(len(lengths), device=lengths.device), lengths - 1, :hidden]
        return torch.cat([forward, states[:, 0, hidden:]], dim=-1)


def in_fp32(device: str) -> torch.autocast:
    """Return the session in which a caller's lower precision does not count."""
    return torch.autocast(device, enabled=False)


def _take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Reorder the tokens of (B, T, W) `x` by (B, T) `index`."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
