"""Labels and probabilities of sentences, from a classifier whose weights no longer change.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.engine.classifier import SentenceClassifier
from colakit.engine.device import Compute, keep_freed_memory
from colakit.engine.inference import decide, logits_by, probabilities, soonest


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N sentences.

    Attributes:
        labels: (N,) indices into the classifier's label names.
        probs: (N, C).
        num_truncated: sentences that were cut to the longest that the classifier reads.
    """

    labels: NDArray[np.int64]
    probs: NDArray[np.float64]
    num_truncated: int


class Predictor:
    """Labels sentences, from one to as many as fit into memory at a time.

        predictor = Predictor(load_classifier("runs/distill-001"), resolve_compute("auto", "auto"))
        predictor(["The cat sleep."]).labels

    Args:
        classifier: is placed on `compute` and trains no more; it must not change afterwards.
        batch_size: sentences computed at a time; sentences of like length go together.
        student_dtype: what a student's products are taken in on a CPU; bf16 labels sooner, where there are
            many sentences.
    """

    def __init__(
        self,
        classifier: SentenceClassifier,
        compute: Compute,
        batch_size: int = 128,
        student_dtype: torch.dtype = torch.float32,
    ) -> None:
        keep_freed_memory()
        compute.place(classifier.model.requires_grad_(False)).eval()
        self.classifier, self.compute, self.batch_size = classifier, compute, batch_size
        self._logits_of = soonest(classifier.model, compute, student_dtype)

    def __call__(self, sentences: Sequence[str]) -> Predictions:
        """Return labels and probabilities in the order of the sentences."""
        tokens = self.classifier.encode(sentences)
        with torch.inference_mode():
            logits = logits_by(self._logits_of, self.classifier.model, tokens, self.compute, self.batch_size)
        probs = probabilities(logits)
        labels = decide(logits, self.classifier.threshold, probs)
        return Predictions(labels, probs, tokens.num_truncated)
