"""Selection of transfer sentences by a student (active learning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from colakit.config.student import TransferSettings
from colakit.distillation.initial_weights import load_student
from colakit.inference.numpy_predictor import StudentPredictor


def selection_identity(settings: TransferSettings) -> dict[str, Any]:
    """Return plain data that determines the selection; empty without one.

    Raises:
        ColakitError: if the model that selects is not a student.
    """
    if settings.select_for is None:
        return {}
    student, _ = load_student(settings.select_for, "transfer.select_for")
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
