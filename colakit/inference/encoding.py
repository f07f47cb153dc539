"""Tokenisation of a split for a classifier, with a warning about truncated sentences."""

from __future__ import annotations

from colakit.data.corpora import Split
from colakit.data.tokens import Tokens
from colakit.inference.classifier import SentenceClassifier
from colakit.utils.array_cache import ArrayCache
from colakit.utils.console import Reporter


def encode_split(
    classifier: SentenceClassifier, split: Split, arrays: ArrayCache, reporter: Reporter, reader: str = ""
) -> Tokens:
    """Tokenise a split for `classifier`; warn about truncated sentences.

    Args:
        reader: prefix of the warning, for example `teacher, `.
    """
    tokens = classifier.encode(split.sentences, arrays)
    warn_truncated(tokens, split, classifier.max_tokens, reporter, reader)
    return tokens


def warn_truncated(
    tokens: Tokens, split: Split, max_tokens: int | None, reporter: Reporter, reader: str = ""
) -> None:
    """Warn if sentences were truncated."""
    if tokens.num_truncated:
        reporter.warn(
            f"{reader}{split.name}: {tokens.num_truncated} of {len(split)} sentences are longer than "
            f"{max_tokens} tokens and were truncated"
        )
