"""`train_val_split` keeps every sentence once, stratifies by label and separates no copies."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.data.corpora import Split
from colakit.data.splits import train_val_split
from colakit.errors import ColakitError


def split_of(labels: list[int], sentences: list[str] | None = None) -> Split:
    texts = sentences or [f"sentence {i}" for i in range(len(labels))]
    return Split("train", tuple(texts), np.array(labels), tuple(f"source {i}" for i in range(len(labels))))


def rows_of(split: Split) -> list[tuple[str, int, str]]:
    return list(zip(split.sentences, split.require_labels().tolist(), split.sources, strict=True))


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=4),
    share=st.floats(0.1, 0.5),
    seed=st.integers(0, 99),
)
def test_val_has_every_label_in_proportion(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
    train, val = train_val_split(split_of(labels), share, seed)
    assert len(val) == math.ceil(share * len(labels))
    assert Counter(rows_of(train) + rows_of(val)) == Counter(rows_of(split_of(labels)))
    counted = np.bincount(val.require_labels(), minlength=len(counts))
    assert (np.abs(counted - np.array(counts) * len(val) / len(labels)) < 1).all()


def test_train_and_val_keep_the_order_of_the_file() -> None:
    labels = [0, 1, 1] * 30
    order = {row: position for position, row in enumerate(rows_of(split_of(labels)))}
    train, val = train_val_split(split_of(labels), 0.2, 0)
    assert (train.name, val.name) == ("train", "val")
    for part in (train, val):
        positions = [order[row] for row in rows_of(part)]
        assert positions == sorted(positions)


def test_split_depends_only_on_the_seed() -> None:
    train = split_of([0, 1, 1] * 30)
    draws = [rows_of(train_val_split(train, 0.2, seed)[1]) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] != draws[3]


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_sentence_are_in_the_same_split(seed: int) -> None:
    sentences = [f"sentence {i // 3}" for i in range(90)]
    contradicting = [(i // 3 + (i % 3 == 2 and i % 5 == 0)) % 2 for i in range(90)]
    train, val = train_val_split(split_of(contradicting, sentences), 0.3, seed)
    assert not set(train.sentences) & set(val.sentences)
    assert len(train) + len(val) == 90
    assert len(set(val.sentences)) == 9


@pytest.mark.parametrize(
    ("labels", "sentences", "message"),
    [
        ([1] * 20, None, "all 20 sentences have one label"),
        ([0, 1], None, "cannot hold out 10% of 2 sentences"),
        ([0] + [1] * 30, None, "cannot hold out 10% of 31 sentences"),
        ([0, 1] * 10, ["the same"] * 20, "cannot hold out 10% of 1 sentences"),
    ],
    ids=["one-class", "tiny", "single", "one-sentence"],
)
def test_unsplittable_sentences_are_refused(
    labels: list[int], sentences: list[str] | None, message: str
) -> None:
    with pytest.raises(ColakitError, match=message):
        train_val_split(split_of(labels, sentences), 0.1, 0)
