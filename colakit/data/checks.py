"""Checks of a corpus: duplicates, conflicting labels, sentences shared between splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colakit.data.corpora import Corpus, Split


@dataclass(frozen=True)
class SplitCheck:
    """Statistics of one split.

    Attributes:
        counts: sentences by label name; empty if the split is unlabelled.
        majority_rate: accuracy of predicting the most frequent label, 0 to 1.
        duplicate_rows: rows that repeat an earlier sentence.
        conflicting_sentences: distinct sentences with more than one label.
        in_train: rows whose sentence is also in train (0 for train itself).
        empty_rows: rows with a blank sentence.
    """

    name: str
    rows: int
    counts: dict[str, int]
    majority_rate: float | None
    duplicate_rows: int
    conflicting_sentences: int
    in_train: int
    empty_rows: int

    def warnings(self) -> list[str]:
        """Return one message per problem."""
        problems = [
            (self.duplicate_rows, "duplicate rows"),
            (self.conflicting_sentences, "sentences with more than one label"),
            (self.in_train, "rows whose sentence is also in train"),
            (self.empty_rows, "blank sentences"),
        ]
        texts = [f"{self.name}: {count} {problem}" for count, problem in problems if count]
        if len([count for count in self.counts.values() if count]) == 1:
            texts.append(f"{self.name}: all sentences have one label")
        return texts


def check_corpus(corpus: Corpus) -> list[SplitCheck]:
    """Return the statistics of every split."""
    train = set(corpus.splits["train"].sentences) if "train" in corpus.splits else set()
    return [_check(split, corpus.label_names, train) for split in corpus.splits.values()]


def _check(split: Split, label_names: tuple[str, ...], train: set[str]) -> SplitCheck:
    first: dict[str, int] = {}  # sentence -> label of its first row
    conflicting: set[str] = set()
    labels = [-1] * len(split) if split.labels is None else split.labels.tolist()
    for sentence, label in zip(split.sentences, labels, strict=True):
        if first.setdefault(sentence, label) != label:
            conflicting.add(sentence)
    counts = {}
    if split.labels is not None:
        numbers = np.bincount(split.labels, minlength=len(label_names)).tolist()
        counts = dict(zip(label_names, numbers, strict=True))
    return SplitCheck(
        name=split.name,
        rows=len(split),
        counts=counts,
        majority_rate=max(counts.values()) / len(split) if counts else None,
        duplicate_rows=len(split) - len(first),
        conflicting_sentences=len(conflicting),
        in_train=0 if split.name == "train" else sum(sentence in train for sentence in split.sentences),
        empty_rows=sum(not sentence.strip() for sentence in split.sentences),
    )
