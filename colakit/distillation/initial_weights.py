"""Initial weights of a student: the embeddings of a base, or all weights of an earlier student.

Shapes: V tokens of the vocabulary, D width of the base.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN

EMBEDDING_STD = 0.1  # of embeddings copied from a base; equals that of randomly drawn ones
NOT_IN_SHAPE = {"dropout", "num_labels", "num_embeddings"}
EMBEDDED_STUDENT = Path(__file__).parents[1] / "assets" / "student"  # weights in fp16
STUDENT_BASE = "--student-base"  # flag of `student.base`


def choose_vocabulary(model: DistilRNN, tokens: Tokens) -> NDArray[np.int64]:
    """Give the most frequent tokens embedding rows of their own; return them in the order of the rows."""
    config = model.config
    if config.num_embeddings is None:
        return np.arange(config.vocab_size)
    counts = np.bincount(tokens.ids, minlength=config.vocab_size)
    kept = np.argsort(-counts, kind="stable")[: config.num_embeddings - 1]
    model.embed_only(kept.tolist())
    return kept


def copy_embeddings(model: DistilRNN, vectors: NDArray[np.float32], kept: NDArray[np.int64]) -> None:
    """Set the embeddings of the tokens `kept` to the principal components of the base's (V, D) embeddings.

    A student with fewer than D dimensions gets the first components; further dimensions stay random. The
    vectors are rounded to bf16, since a teacher's checkpoint may hold them in bf16: the control starts equal.
    """
    width = min(model.config.embedding_size, vectors.shape[1])
    chosen = torch.from_numpy(vectors[kept]).bfloat16().double().numpy()
    chosen -= chosen.mean(axis=0)
    _, directions = np.linalg.eigh(chosen.T @ chosen)  # (D, D), least important first
    reduced = chosen @ directions[:, ::-1][:, :width]
    spread = reduced.std() or 1.0  # 0 for a single token
    rows = torch.from_numpy((reduced * (EMBEDDING_STD / spread)).astype(np.float32))
    with torch.no_grad():
        model.embedding.weight[-len(rows) :, :width] = rows  # row 0 may be that of all other tokens


def load_start(path: str, config: RNNConfig, tokenizer: SentenceTokenizer) -> SentenceClassifier:
    """Return the student at a path, whose weights a student of this shape and tokenizer can start with.

    Raises:
        ColakitError: if it is another kind of model, or differs in its shape or tokenizer.
    """
    where, (start, model) = f"student.init_from {path}", load_student(path, "student.init_from")
    if start.tokenizer.vocabulary() != tokenizer.vocabulary():
        raise ColakitError(
            f"{where}: its tokenizer is another one",
            hint=f"Name the base of its tokenizer: {STUDENT_BASE} BASE",
        )
    wanted, given = (_as_settings(shape) for shape in (config, model.config))
    if differing := [key for key in wanted if wanted[key] != given[key]]:
        shapes = ", ".join(f"{key} {given[key]} (settings: {wanted[key]})" for key in differing)
        raise ColakitError(
            f"{where}: has {shapes}",
            hint="Set the same student settings, or leave out student.init_from.",
        )
    return start


def load_student(path: str, setting: str) -> tuple[SentenceClassifier, DistilRNN]:
    """Return the student at a path (`builtin`: the embedded one), and its network.

    Args:
        setting: that names the path, for errors.

    Raises:
        ColakitError: if it cannot be loaded, or is another kind of model.
    """
    try:
        student = load_classifier(str(EMBEDDED_STUDENT) if path == "builtin" else path)
    except ColakitError as error:
        raise ColakitError(f"{setting}: {error.message}", hint=error.hint) from error
    if not isinstance(student.model, DistilRNN):
        raise ColakitError(
            f"{setting} {path}: is {student.name}, not a recurrent student",
            hint="Name a run of distill or train-scratch.",
        )
    return student, student.model


def _as_settings(config: RNNConfig) -> dict[str, Any]:
    """Return the settings of a shape: without dropout, which has no weights, and labels."""
    shape = {key: value for key, value in asdict(config).items() if key not in NOT_IN_SHAPE}
    return {**shape, "vocabulary": None if config.num_embeddings is None else config.num_embeddings - 1}


def copy_weights(start: SentenceClassifier, student: SentenceClassifier) -> None:
    """Copy all weights of a student of the same shape; those of the head only between equal labels."""
    weights = start.model.state_dict()
    if start.label_names != student.label_names:
        weights |= {name: w for name, w in student.model.state_dict().items() if name.startswith("score.")}
    student.model.load_state_dict(weights)
