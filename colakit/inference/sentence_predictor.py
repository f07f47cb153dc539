"""What the predictors by torch, numpy and ONNX Runtime have in common.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.data.tokens import Tokens
from colakit.inference.decisions import Predictions, as_list


class SentencePredictor(ABC):
    """Labels sentences.

    Attributes:
        name: of the kind of model, for messages.
        threshold: class 1 is predicted if its probability is at least this; None predicts the argmax.
        temperature: calibrates the probabilities, of which `threshold` is one.
        max_tokens: longer sentences are truncated to it; None: the tokens are not limited.
        origin: plain data on how the model was made.
    """

    name: str
    label_names: tuple[str, ...]
    threshold: float | None
    temperature: float
    max_tokens: int | None
    origin: dict[str, Any]

    def __call__(self, sentences: str | Sequence[str]) -> Predictions:
        """Return the predictions for one sentence or several, in their order."""
        tokens = self.encode(as_list(sentences))
        decision = (self.label_names, self.threshold, tokens.num_truncated, self.temperature)
        return Predictions.of(self.logits(tokens), *decision)

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> Tokens:
        """Return the sentences' tokens, truncated to `max_tokens`."""

    @abstractmethod
    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return (N, C) logits of N sentences."""
