"""A trained n-gram baseline with its decision rule, and its file `baseline.safetensors`.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.inference.decisions import Predictions, as_list
from colakit.models.ngrams import NgramConfig, NgramModel
from colakit.storage.model_file import BASELINE_NAME, read_baseline_file, write_baseline_file
from colakit.utils.documents import library_errors


@dataclass
class BaselineClassifier:
    """An n-gram model and its decision rule; labels sentences as `Predictor` does.

    Attributes:
        threshold: class 1 is predicted if its probability is at least this; None predicts the argmax.
        temperature: calibrates the probabilities, of which `threshold` is one.
        origin: plain data on how the model was made: command, settings, data.
        max_tokens: None; sentences are never truncated.
    """

    model: NgramModel
    label_names: tuple[str, ...]
    threshold: float | None = None
    temperature: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)
    max_tokens: None = None

    @property
    def name(self) -> str:
        """Name of this kind of model in tables and messages."""
        return f"baseline ({'tf-idf' if self.model.config.analyzers() else 'majority'})"

    def __call__(self, sentences: str | Sequence[str]) -> Predictions:
        """Return the predictions for one sentence or several, in their order."""
        logits = self.logits(as_list(sentences))
        return Predictions.of(logits, self.label_names, self.threshold, 0, self.temperature)

    def logits(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, C) logits of N sentences."""
        return self.model(sentences)

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that determines a sentence's logits."""
        digest = hashlib.sha256(repr(self.model.config).encode())
        for name, tensor in sorted(self.model.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> Path:
        """Write `baseline.safetensors` into a folder, and return its path."""
        metadata = {
            "words": self.model.config.words,
            "characters": self.model.config.characters,
            "label_names": list(self.label_names),
            "threshold": self.threshold,
            "temperature": self.temperature,
            "origin": self.origin,
        }
        return write_baseline_file(folder, metadata, self.model.tensors)


def is_baseline(where: str | Path) -> bool:
    """Return whether a path is a `baseline.safetensors` or a folder that has one."""
    path = Path(where).expanduser()
    return path.name == BASELINE_NAME or (path / BASELINE_NAME).is_file()


def load_baseline(where: str | Path) -> BaselineClassifier:
    """Load the baseline at a path for which `is_baseline` holds; torch is not imported.

    Raises:
        DocumentError: if the file cannot be read or is damaged.
    """
    path = Path(where).expanduser()
    path = path if path.name == BASELINE_NAME else path / BASELINE_NAME
    metadata, tensors = read_baseline_file(path)
    with library_errors(path, hint="Copy or train it again."):
        config = NgramConfig(len(metadata.label_names), metadata.words, metadata.characters)
        model = NgramModel(config, tensors)
    return BaselineClassifier(
        model, tuple(metadata.label_names), metadata.threshold, metadata.temperature, metadata.origin
    )
