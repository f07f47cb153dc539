"""A corpus split for training: train, validation, and the splits to report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from colakit.config.data import DataSettings
from colakit.data.batches import Examples
from colakit.data.checks import check_corpus, describe_classes, label_warnings
from colakit.data.corpora import Corpus, Split
from colakit.data.splits import train_val_split
from colakit.inference.classifier import SentenceClassifier, encode_split
from colakit.utils.array_cache import ArrayCache
from colakit.utils.console import Reporter


@dataclass(frozen=True)
class TaskData:
    """A corpus divided into train, a validation split (chooses epoch and threshold) and reported splits."""

    corpus: Corpus
    train: Split
    val: Split
    reports: dict[str, Split]
    data: DataSettings = field(default_factory=DataSettings)

    def identity(self) -> dict[str, str]:
        """Return the fingerprint of every split that a run reads."""
        parts = {"train": self.train, "val": self.val, **self.reports}
        return {name: split.fingerprint() for name, split in parts.items()}

    def sizes(self) -> dict[str, int]:
        """Return the number of sentences by split."""
        parts = {"train": self.train, "val": self.val, **self.reports}
        return {name: len(split) for name, split in parts.items()}


def split_corpus(
    corpus: Corpus, data: DataSettings, reporter: Reporter, *, evaluate_dev: bool = True
) -> TaskData:
    """Print notes on irregular data and divide train into train and validation splits.

    Args:
        evaluate_dev: report the labelled splits beside train.
    """
    for check in check_corpus(corpus):
        for text in check.warnings():
            reporter.say(f"note: {text}")
    for text in label_warnings(corpus.label_names):
        reporter.warn(text)
    reporter.say(f"train: {describe_classes(corpus.split('train'), corpus.label_names)}")
    train, val = train_val_split(corpus.split("train"), data.val_fraction, data.val_seed)
    names = corpus.report_splits() if evaluate_dev else []
    reports = {name: corpus.splits[name] for name in names if name != "train"}
    return TaskData(corpus, train, val, reports, data)


def labelled_examples(
    classifier: SentenceClassifier,
    split: Split,
    arrays: ArrayCache,
    reporter: Reporter,
    teacher_logits: NDArray[np.float32] | None = None,
    teacher_hidden: NDArray[np.float16] | None = None,
) -> Examples:
    """Tokenise a labelled split for `classifier`."""
    tokens = encode_split(classifier, split, arrays, reporter)
    return Examples(tokens, split.require_labels(), teacher_logits, teacher_hidden)
