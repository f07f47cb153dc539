"""The student: embedding → RNN, GRU, LSTM or nothing (a bag) → masked pooling → linear.

Shapes: B batch, T tokens, E embedding width, H hidden width per direction, W = H·directions, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.partial_embedding import PartialEmbedding

CELL_MODULES: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}


class Encoding(NamedTuple):
    """Output of embedding, recurrent layers and pooling for a batch.

    Attributes:
        rows: (B, T), embedding row of each token.
        first: (B, T, W), states of the first layer.
        pooled: (B, W), sentence vectors.
    """

    rows: Tensor
    first: Tensor
    pooled: Tensor


class DistilRNN(nn.Module):
    """A small recurrent classifier; its logits do not depend on padding.

    The backward direction reads each sentence reversed within its own length (one gather), so it never
    starts in padding. Packed sequences would do the same, but no export format supports them.
    """

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        width = config.width
        full = nn.Embedding(config.num_embeddings or config.vocab_size, config.embedding_size)
        self.embedding: nn.Embedding | PartialEmbedding = full
        self.row_of_token: Tensor | None
        shared = None if config.num_embeddings is None else torch.zeros(config.vocab_size, dtype=torch.int32)
        self.register_buffer("row_of_token", shared)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                CELL_MODULES[config.cell](
                    width if layer else config.embedding_size, config.hidden_size, batch_first=True
                )
                for _ in range(config.directions)
            )
            for layer in range(config.recurrent_layers)
        )
        self.attention = nn.Linear(width, 1) if config.pooling == "attention" else None
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(width, config.num_labels)
        nn.init.normal_(full.weight, std=0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits (B, C), fp32.

        Args:
            input_ids: (B, T) int64, padded on the right with any token.
            attention_mask: (B, T), 1 at real tokens; every row has at least one.
        """
        return self.classify(self.encode(input_ids, attention_mask).pooled)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Encoding:
        """Return states and sentence vectors of (B, T) tokens, in fp32."""
        lengths = attention_mask.sum(dim=1)  # (B,)
        reverse = self.reversal_indices(lengths, input_ids.shape[1])  # (B, T)
        rows = self.embedding_rows(input_ids)
        states, x = [], self.embedding(rows)  # (B, T, E)
        for layer in self.layers:
            with self._recurrent_precision(x.device.type):
                x = self._run_layer(layer, self.dropout(x), reverse).float()
            states.append(x)
        if not states:
            x = self.dropout(x)
            states.append(x)
        with in_fp32(x.device.type):
            return Encoding(rows, states[0], self.pool(x, attention_mask, lengths))

    def _recurrent_precision(self, device: str) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of the recurrent layers: the caller's in CPU training, else fp32.

        On a CPU they take most of a training step and are faster in bf16 (docs/performance.md). Without
        AVX512 oneDNN has no LSTM in bf16, and all cells stay in fp32. Evaluation is always in fp32.
        """
        keeps = self.training and device == "cpu" and trains_in_bf16()
        return contextlib.nullcontext() if keeps else in_fp32(device)

    def embedding_rows(self, input_ids: Tensor) -> Tensor:
        """Return the embedding row of each token, int64, in the shape of `input_ids`."""
        return input_ids if self.row_of_token is None else self.row_of_token[input_ids].long()

    def classify(self, pooled: Tensor) -> Tensor:
        """Return class logits (B, C) of (B, W) sentence vectors."""
        with in_fp32(pooled.device.type):
            return self.score(self.dropout(pooled))

    def check_rows(self) -> None:
        """Raise `ValueError` if a token's row is outside the embedding."""
        rows = self.row_of_token
        if rows is not None and not bool(((rows >= 0) & (rows < self.embedding.num_embeddings)).all()):
            raise ValueError("row_of_token has rows outside the embedding")

    def embed_only(self, tokens: Sequence[int]) -> None:
        """Give each of `tokens` its own embedding row, from 1 on; all other tokens share row 0."""
        assert self.row_of_token is not None
        self.row_of_token.zero_()
        self.row_of_token[torch.tensor(tokens)] = torch.arange(1, len(tokens) + 1, dtype=torch.int32)

    def train_rows(self, tokens: Tensor) -> None:
        """Train only the embedding rows of `tokens` (N,)."""
        assert isinstance(self.embedding, nn.Embedding)
        self.embedding = PartialEmbedding(self.embedding, self.embedding_rows(tokens).unique())

    @staticmethod
    def reversal_indices(lengths: Tensor, tokens: int) -> Tensor:
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
        """Return sentence vectors (B, W) from (B, T, W) states.

        Args:
            attention_mask: (B, T), 1 at real tokens.
            lengths: (B,), number of real tokens.
        """
        real = attention_mask.bool()[:, :, None]  # (B, T, 1)
        match self.config.pooling:
            case "mean":
                return (states * real).sum(dim=1) / lengths[:, None]
            case "max":
                return states.masked_fill(~real, -torch.inf).amax(dim=1)
            case "attention":
                assert self.attention is not None
                # in two dimensions: torch's product of three rounds by whether the weight requires a gradient
                scores = self.attention(states.flatten(0, 1)).view(real.shape)
                weights = scores.masked_fill(~real, -torch.inf).softmax(dim=1)
                return (weights * states).sum(dim=1)
        hidden = self.config.hidden_size  # `last`: each direction's final state
        forward = states[torch.arange(len(lengths), device=lengths.device), lengths - 1, :hidden]
        return torch.cat([forward, states[:, 0, hidden:]], dim=-1)


def trains_in_bf16() -> bool:
    """Return whether this CPU has the recurrent layers in bf16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_fp32(device: str) -> torch.autocast:
    """Return a context that turns autocast off."""
    return torch.autocast(device, enabled=False)


def _take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return (B, T, W) `x` with its tokens in the order of (B, T) `index`."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
