"""Labels and probabilities of sentences, from a classifier whose weights no longer change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from colakit.data.tokens import INFERENCE_BATCH
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.decisions import Predictions
from colakit.inference.forward import logits_by, soonest
from colakit.runtime.device import Compute, prepare_cpu


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
        batch_size: int = INFERENCE_BATCH,
        student_dtype: torch.dtype = torch.float32,
    ) -> None:
        prepare_cpu()
        compute.place(classifier.model.requires_grad_(False)).eval()
        if compute.device.type == "cpu":
            _lay_transposed(classifier.model)
        self.classifier, self.compute, self.batch_size = classifier, compute, batch_size
        self._logits_of = soonest(classifier.model, compute, student_dtype)

        self.name, self.label_names = classifier.name, classifier.label_names
        self.max_tokens, self.threshold = classifier.max_tokens, classifier.threshold

    def __call__(self, sentences: Sequence[str]) -> Predictions:
        """Return labels and probabilities in the order of the sentences."""
        tokens = self.classifier.encode(sentences)
        with torch.inference_mode():
            logits = logits_by(self._logits_of, self.classifier.model, tokens, self.compute, self.batch_size)
        return Predictions.of(logits, self.classifier.threshold, tokens.num_truncated)


def _lay_transposed(model: nn.Module) -> None:
    """Let every fp32 matrix W lie in memory as Wᵀ does; its shape and its numbers stay.

    So lie the weights that x·Wᵀ reads in order. For the dozen rows of one sentence, and for no more than some
    dozens, the product is sooner done (docs/performance.md).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()
