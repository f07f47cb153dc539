"""Validation split and folds of the train split."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.errors import ColakitError


def train_val_split(train: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split `train` into (train, val), stratified by label; copies of a sentence stay on one side.

    The only sentence of a class stays in train.

    Args:
        share: fraction of the distinct sentences in val, 0 < share < 1.
        seed: random seed; use the same one for runs to be compared.

    Raises:
        ColakitError: if train has one class only, or too few sentences.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import; predict never needs it

    labels = train.require_labels()
    first = {sentence: i for i, sentence in reversed(list(enumerate(train.sentences)))}
    distinct = np.array(sorted(first.values()))
    counts = np.bincount(labels)
    if (counts > 0).sum() < 2:
        raise ColakitError(
            f"train: all {len(train)} sentences have one label; a classifier needs two",
            hint="Check the label column.",
        )
    classes = labels[distinct]
    is_single = np.bincount(classes)[classes] == 1
    divided = distinct[~is_single]
    try:
        if len(np.unique(labels[divided])) < 2:
            raise ValueError("only one label has two sentences")
        kept, _ = train_test_split(divided, test_size=share, random_state=seed, stratify=labels[divided])
    except ValueError as error:
        raise ColakitError(
            f"data.val_fraction: cannot hold out {share:.0%} of {len(distinct)} sentences by label ({error})",
            hint="Give more sentences, or another share with --set data.val_fraction=0.2",
        ) from error
    keep = {*kept.tolist(), *distinct[is_single].tolist()}
    is_kept = np.array([first[sentence] in keep for sentence in train.sentences])
    return train.take(np.flatnonzero(is_kept), "train"), train.take(np.flatnonzero(~is_kept), "val")


def left_out(sentences: Sequence[str], fold: str) -> NDArray[np.bool_]:
    """Return a mask of the sentences in a fold, (N,).

    The fold is a hash of the normalised sentence, so it is the same in every run.

    Args:
        fold: `i/k`, the i-th of k folds, from 1.
    """
    number, folds = map(int, fold.split("/"))
    digests = (hashlib.sha256(normalised(sentence).encode()).digest() for sentence in sentences)
    return np.array(
        [int.from_bytes(digest[:8], "big") % folds == number - 1 for digest in digests], dtype=bool
    )


def normalised(sentence: str) -> str:
    """Return `sentence` without case, spaces and punctuation, to compare sentences by."""
    text = unicodedata.normalize("NFKC", sentence).casefold()
    return "".join(character for character in text if character.isalnum())
