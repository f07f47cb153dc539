"""A small student with large weights, so that numerical errors are visible."""

from __future__ import annotations

import torch

from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN

VOCAB = 30


def student(**settings: object) -> DistilRNN:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "num_labels": 3, "embedding_size": 5, "hidden_size": 7}
    model = DistilRNN(RNNConfig(**{**sizes, **settings}))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # default weights give states so small that errors would not show
    return model.eval()
