"""A linear classifier of TF-IDF features: the baseline that knows which words occur, and nothing else.

scikit-learn computes the features and the fit. The weights are kept as arrays, without pickle.

Shapes: N sentences, F features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

WORD_PATTERN = r"\w+|[^\w\s]"  # words and single punctuation marks
MAX_WORDS, MAX_CHARACTERS = 5, 8  # of an n-gram
MAX_ITERATIONS = 1000  # of the optimizer
SEPARATOR = "\n"  # occurs in no n-gram: words have no white space, and `char_wb` normalises it


@dataclass(frozen=True)
class NgramConfig:
    """Features of an `NgramModel`.

    Attributes:
        num_labels: C.
        words: longest word n-gram; 0 for none.
        characters: longest character n-gram within a word, from 2; 0 for none.
    """

    num_labels: int
    words: int = 0
    characters: int = 0

    def analyzers(self) -> dict[str, dict[str, Any]]:
        """Return the arguments of a `TfidfVectorizer`, by kind of n-gram."""
        kinds: dict[str, dict[str, Any]] = {}
        if self.words:
            kinds["words"] = {"token_pattern": WORD_PATTERN, "ngram_range": (1, self.words)}
        if self.characters:
            kinds["characters"] = {
                "analyzer": "char_wb",
                "ngram_range": (min(2, self.characters), self.characters),
            }
        return {name: {**arguments, "sublinear_tf": True} for name, arguments in kinds.items()}


class NgramModel:
    """Logits of sentences from TF-IDF features; without features, the same logits for all sentences.

    Args:
        tensors: `score.weight` (C, F) and `score.bias` (C,), fp32; for each kind of n-gram NAME,
            `NAME.vocabulary`, the n-grams as UTF-8 with a line break after each, uint8, and `NAME.idf`, fp32.

    Raises:
        ValueError: if a tensor is missing or unknown, or has the wrong shape or dtype.
    """

    def __init__(self, config: NgramConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.config, self.tensors = config, dict(tensors)
        kinds = config.analyzers()
        names = {
            "score.weight",
            "score.bias",
            *(f"{kind}.{part}" for kind in kinds for part in ("vocabulary", "idf")),
        }
        if difference := names ^ set(tensors):
            raise ValueError(f"{min(difference)} is missing, or is no tensor of this model")
        self._vectorizers = []
        num_features = 0
        for kind, arguments in kinds.items():
            terms = _terms(tensors[f"{kind}.vocabulary"])
            _check(f"{kind}.idf", tensors[f"{kind}.idf"], (len(terms),))
            vectorizer = TfidfVectorizer(vocabulary=terms, **arguments)
            vectorizer.idf_ = tensors[f"{kind}.idf"].astype(np.float64)
            self._vectorizers.append(vectorizer)
            num_features += len(terms)
        _check("score.weight", tensors["score.weight"], (config.num_labels, num_features))
        _check("score.bias", tensors["score.bias"], (config.num_labels,))

    @property
    def num_parameters(self) -> int:
        """Number of weights, biases and inverse document frequencies."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.endswith(".vocabulary"))

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, C) logits of N sentences."""
        from scipy import sparse

        bias = self.tensors["score.bias"]
        if not self._vectorizers:
            return np.tile(bias, (len(sentences), 1))
        features = sparse.hstack([vectorizer.transform(sentences) for vectorizer in self._vectorizers])
        return (features @ self.tensors["score.weight"].T + bias).astype(np.float32)


def fit_ngrams(
    config: NgramConfig, sentences: Sequence[str], labels: NDArray[np.int64], penalties: Sequence[float]
) -> list[NgramModel]:
    """Return one model for each of `penalties`, fitted to (N,) labels by logistic regression.

    Classes have equal weight, so that the argmax does not favour the most frequent one.

    Without features, the logits are the logarithms of the labels' frequencies, and `penalties` has no effect
    beyond its length.

    Args:
        penalties: inverse strength of the squared penalty, `C` of scikit-learn's `LogisticRegression`.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    tensors: dict[str, NDArray[Any]] = {}
    parts = []
    for kind, arguments in config.analyzers().items():
        vectorizer = TfidfVectorizer(**arguments)
        parts.append(vectorizer.fit_transform(sentences))
        terms = SEPARATOR.join(vectorizer.get_feature_names_out())
        tensors[f"{kind}.vocabulary"] = np.frombuffer(terms.encode(), dtype=np.uint8)
        tensors[f"{kind}.idf"] = vectorizer.idf_.astype(np.float32)
    if not parts:
        counts = np.bincount(labels, minlength=config.num_labels)
        return [_with_weights(config, tensors, np.zeros((config.num_labels, 0)), np.log(counts))] * len(
            penalties
        )
    features = sparse.hstack(parts).tocsr()
    return [_with_weights(config, tensors, *_regress(features, labels, penalty)) for penalty in penalties]


def _regress(
    features: sparse.csr_matrix, labels: NDArray[np.int64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (C, F) and biases (C,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # weak penalties converge slowly and generalise alike
        fitted = LogisticRegression(C=penalty, class_weight="balanced", max_iter=MAX_ITERATIONS).fit(
            features, labels
        )
    if len(fitted.classes_) > 2:
        return fitted.coef_, fitted.intercept_
    return np.concatenate([0 * fitted.coef_, fitted.coef_]), np.concatenate([[0.0], fitted.intercept_])


def _with_weights(
    config: NgramConfig,
    tensors: Mapping[str, NDArray[Any]],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> NgramModel:
    scores = {"score.weight": weight.astype(np.float32), "score.bias": bias.astype(np.float32)}
    return NgramModel(config, {**tensors, **scores})


def _terms(vocabulary: NDArray[np.uint8]) -> list[str]:
    """Return the n-grams of a vocabulary.

    Raises:
        ValueError: if it is not UTF-8, or an n-gram occurs twice.
    """
    if vocabulary.dtype != np.uint8 or vocabulary.ndim != 1:
        raise ValueError("a vocabulary must be bytes in one dimension")
    terms = vocabulary.tobytes().decode().split(SEPARATOR)
    if len(set(terms)) != len(terms):
        raise ValueError("an n-gram occurs twice in the vocabulary")
    return terms


def _check(name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise ValueError(f"{name} must be float32 of shape {shape}")
