"""Selection of transfer sentences by a student (active learning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from colakit.config.student import TransferSettings
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.models.rnn.model import DistilRNN


def selection_identity(settings: TransferSettings) -> dict[str, Any]:
    """Return plain data that determines the selection; empty without one.

    Raises:
        ColakitError: if the model that selects is not a student.
    """
    if settings.select_for is None:
        return {}
    try:
        student = load_classifier(settings.select_for)
    except ColakitError as error:
        raise ColakitError(f"transfer.select_for: {error.message}", hint=error.hint) from error
    if not isinstance(student.model, DistilRNN):
        raise ColakitError(
            f"transfer.select_for {settings.select_for}: is {student.name}, not a recurrent student",
            hint="Name a run of distill or train-scratch.",
        )
    return {"student": student.fingerprint(), "candidates": settings.drawn_for_each}


def least_certain(student: str, sentences: Sequence[str], count: int) -> list[str]:
    """Return the `count` sentences between whose two likeliest labels a student's logits differ least.

    The most useful labels are those of sentences near the decision boundary (uncertainty sampling, Lewis &
    Gale 1994, arXiv:cmp-lg/9407020). The order is kept.
    """
    predictor = StudentPredictor(student)
    logits = np.sort(predictor.logits(predictor.encode(sentences)), axis=1)
    kept = np.argsort(logits[:, -1] - logits[:, -2], kind="stable")[:count]
    return [sentences[index] for index in np.sort(kept)]
