"""Checks of a corpus: duplicates, conflicting labels, sentences shared between splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from colakit.data.corpora import Corpus, Split

MAX_NUMBERS = 20  # numeric labels of a classification; more look like scores
MAX_NAMED = 20  # labels in a message


@dataclass(frozen=True)
class SplitCheck:
    """Statistics of one split.

    Attributes:
        counts: sentences by label name; empty if the split is unlabelled.
        majority_rate: accuracy of predicting the most frequent label, 0 to 1.
        duplicate_rows: rows that repeat an earlier sentence.
        conflicting_sentences: distinct sentences with more than one label.
        single: labels of one distinct sentence only.
        in_train: rows whose sentence is also in train (0 for train itself).
        empty_rows: rows with a blank sentence.
    """

    name: str
    rows: int
    counts: dict[str, int]
    majority_rate: float | None
    duplicate_rows: int
    conflicting_sentences: int
    single: list[str]
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
        if self.name == "train" and self.single:
            texts.append(f"train: one sentence only of {_listed(self.single)}; validation has none of them")
        return texts


def check_corpus(corpus: Corpus) -> list[SplitCheck]:
    """Return the statistics of every split."""
    train = set(corpus.splits["train"].sentences) if "train" in corpus.splits else set()
    return [_check(split, corpus.label_names, train) for split in corpus.splits.values()]


def label_warnings(label_names: tuple[str, ...]) -> list[str]:
    """Return one message per oddity of the labels."""
    alike: dict[object, list[str]] = defaultdict(list)
    for name in label_names:
        number = _number(name)
        alike[" ".join(name.casefold().split()) if number is None else number].append(name)
    texts = [
        f"labels {_listed(list(map(repr, names)))} are different classes, but differ only in spelling"
        for names in alike.values()
        if len(names) > 1
    ]
    if len(label_names) > MAX_NUMBERS and all(_number(name) is not None for name in label_names):
        texts.append(f"{len(label_names):,} different numeric labels: these look like scores, not classes")
    return texts


def describe_classes(train: Split, label_names: tuple[str, ...]) -> str:
    """Return the labels with their numbers of sentences in train."""
    counts = np.bincount(train.require_labels(), minlength=len(label_names)).tolist()
    return _listed([f"{name} {count:,}" for name, count in zip(label_names, counts, strict=True)])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _check(split: Split, label_names: tuple[str, ...], train: set[str]) -> SplitCheck:
    first: dict[str, int] = {}  # sentence -> label of its first row
    conflicting: set[str] = set()
    labels = [-1] * len(split) if split.labels is None else split.labels.tolist()
    for sentence, label in zip(split.sentences, labels, strict=True):
        if first.setdefault(sentence, label) != label:
            conflicting.add(sentence)
    counts, single = {}, []
    if split.labels is not None:
        numbers = np.bincount(split.labels, minlength=len(label_names)).tolist()
        counts = dict(zip(label_names, numbers, strict=True))
        distinct = Counter(first.values())
        single = [name for index, name in enumerate(label_names) if distinct[index] == 1]
    return SplitCheck(
        name=split.name,
        rows=len(split),
        counts=counts,
        majority_rate=max(counts.values()) / len(split) if counts else None,
        duplicate_rows=len(split) - len(first),
        conflicting_sentences=len(conflicting),
        single=single,
        in_train=0 if split.name == "train" else sum(sentence in train for sentence in split.sentences),
        empty_rows=sum(not sentence.strip() for sentence in split.sentences),
    )
