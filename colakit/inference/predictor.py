"""Labels and probabilities of sentences, computed with torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from colakit.data.tokens import INFERENCE_BATCH, Tokens
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.forward import compute_rows, fastest_forward
from colakit.inference.sentence_predictor import SentencePredictor
from colakit.runtime.device import Compute, prepare_cpu


class Predictor(SentencePredictor):
    """Label sentences with a `SentenceClassifier`.

        predictor = Predictor(load_classifier("runs/distill-001"), resolve_compute("auto", "auto"))
        predictor("The cat sleep.").names

    Args:
        classifier: is moved to the device of `compute` and frozen; its weights must not change afterwards.
        student_dtype: dtype of a student's products on a CPU; bf16 is faster for many sentences.
    """

    def __init__(
        self,
        classifier: SentenceClassifier,
        compute: Compute,
        batch_size: int = INFERENCE_BATCH,
        student_dtype: torch.dtype = torch.float32,
    ) -> None:
        prepare_cpu()
        compute.place(classifier.model.requires_grad_(False)).eval()
        if compute.device.type == "cpu":
            for module in classifier.model.modules():
                if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
                    # W in memory as Wᵀ: x·Wᵀ with up to some dozens of rows then reads W in order and is
                    # faster (docs/performance.md).
                    module.weight.data = module.weight.data.t().contiguous().t()
        self.classifier, self.compute, self.batch_size = classifier, compute, batch_size
        self._forward = fastest_forward(classifier.model, compute, student_dtype)
        self.name, self.label_names, self.origin = classifier.name, classifier.label_names, classifier.origin
        self.max_tokens = classifier.max_tokens
        self.threshold, self.temperature = classifier.threshold, classifier.temperature

    def encode(self, sentences: Sequence[str]) -> Tokens:
        """Return the sentences' tokens, truncated to `max_tokens`."""
        return self.classifier.encode(sentences)

    @torch.inference_mode()
    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return (N, C) logits of N sentences."""
        return compute_rows(self._forward, len(self.label_names), tokens, self.compute, self.batch_size)
