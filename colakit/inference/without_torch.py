"""Choice among the predictors that need no torch."""

from __future__ import annotations

from pathlib import Path

from colakit.data.tokens import INFERENCE_BATCH
from colakit.inference.baseline import BaselineClassifier, is_baseline, load_baseline
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.onnx_predictor import OnnxPredictor, onnx_file
from colakit.storage.model_file import student_file


def load_without_torch(
    where: str | Path, batch_size: int = INFERENCE_BATCH
) -> BaselineClassifier | OnnxPredictor | StudentPredictor | None:
    """Return the baseline, exported model or student at a path; None if it has no file of any of them.

    Raises:
        ColakitError: if there is such a file, but it is damaged; no other file is read in its place.
    """
    if is_baseline(where):
        return load_baseline(where)
    if (path := onnx_file(where)) is not None:
        return OnnxPredictor(path, batch_size)
    return None if student_file(where) is None else StudentPredictor(where, batch_size)
