"""Configuration of a student, without torch.

Shapes: E embedding width, H hidden width, C classes.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from colakit.models.config_checks import check_shape

RECURRENT_CELLS = ("rnn", "gru", "lstm")
CELLS = (*RECURRENT_CELLS, "bag")
POOLINGS = ("last", "mean", "max", "attention")
RNN_SIZES = {
    "vocab_size": 2**24,
    "num_labels": 2**16,
    "embedding_size": 2**16,
    "hidden_size": 2**16,
    "num_layers": 2**6,
}


@dataclass(frozen=True)
class RNNConfig:
    """Shape of a `DistilRNN`.

    Attributes:
        vocab_size: tokens in the vocabulary.
        num_labels: C.
        cell: `rnn` (tanh), `gru` or `lstm`; `bag` pools the embeddings, without recurrent layers.
        embedding_size: E.
        hidden_size: H, per direction.
        bidirectional: whether to add a backward direction.
        pooling: `last` (each direction's final state), `mean`, `max` or `attention` over real tokens.
        dropout: probability on embeddings, between layers and before the head.
        num_embeddings: embedding rows, of which row 0 is shared by rare tokens; None is one row per token.
    """

    vocab_size: int
    num_labels: int = 2
    cell: str = "lstm"
    embedding_size: int = 128
    hidden_size: int = 256
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "attention"
    dropout: float = 0.2
    num_embeddings: int | None = None

    def __post_init__(self) -> None:
        check_shape(self, RNN_SIZES)
        if self.num_embeddings is not None:
            check_shape(self, {"num_embeddings": self.vocab_size + 1})
        if not isinstance(self.cell, str) or self.cell not in CELLS:
            raise ValueError(f"cell (={reprlib.repr(self.cell)}) must be one of {', '.join(CELLS)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling (={reprlib.repr(self.pooling)}) must be one of {', '.join(POOLINGS)}")

        if self.cell == "bag" and self.pooling == "last":
            raise ValueError("pooling last needs a recurrent cell; a bag has mean, max or attention")

    @property
    def recurrent_layers(self) -> int:
        """Number of recurrent layers, 0 for a bag."""
        return 0 if self.cell == "bag" else self.num_layers

    @property
    def width(self) -> int:
        """Width of the pooled states: of all directions, or of the embedding for a bag."""
        return self.hidden_size * self.directions if self.recurrent_layers else self.embedding_size

    @property
    def directions(self) -> int:
        """Number of reading directions, 1 or 2."""
        return 2 if self.bidirectional else 1
