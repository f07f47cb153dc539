"""What the three training commands share before they train: corpus, held-out slice, plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from colakit.api.session import Session
from colakit.data.batches import Examples
from colakit.data.checks import check_corpus
from colakit.data.corpora import Corpus, Split
from colakit.data.splits import train_val_split
from colakit.data.tokens import Tokens
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.encoding import encode_split
from colakit.models.gpt.model import num_frozen_blocks
from colakit.models.parameters import ParameterReport, count_parameters


@dataclass(frozen=True)
class TaskData:
    """A corpus cut into what is trained on, what chooses, and what is reported on."""

    corpus: Corpus
    train: Split
    val: Split
    reports: dict[str, Split]

    def identity(self) -> dict[str, str]:
        """Return fingerprints of all that a run reads."""
        parts = {"train": self.train, "val": self.val, **self.reports}
        return {name: split.fingerprint() for name, split in parts.items()}


def load_task(session: Session) -> TaskData:
    """Read the corpus, warn of what is odd in it, and hold out the slice that chooses."""
    corpus = session.load_corpus()
    for check in check_corpus(corpus):
        for text in check.warnings():
            session.reporter.say(f"note: {text}")
    data = session.settings.data
    train, val = train_val_split(corpus.split("train"), data.val_fraction, data.val_seed)
    reports = {name: corpus.splits[name] for name in corpus.report_splits() if name != "train"}
    return TaskData(corpus, train, val, reports)


def examples(
    session: Session,
    classifier: SentenceClassifier,
    split: Split,
    teacher_logits: NDArray[np.float32] | None = None,
    teacher_hidden: NDArray[np.float16] | None = None,
) -> Examples:
    """Tokenise a labelled split as `classifier` reads it."""
    tokens = encode(session, classifier, split)
    return Examples(tokens, split.require_labels(), teacher_logits, teacher_hidden)


def encode(session: Session, classifier: SentenceClassifier, split: Split, whose: str = "") -> Tokens:
    """Tokenise a split as `classifier` reads it, and say how many sentences had to be cut.

    Args:
        whose: for the warning, the model that reads them.
    """
    return encode_split(classifier, split, session.arrays, session.reporter, whose)


def show_parameters(session: Session, model: nn.Module) -> ParameterReport:
    """Print the table of parameters and return the report."""
    report = count_parameters(model)
    rows = [[row.name, f"{row.trainable:,}", f"{row.total:,}"] for row in report.rows]
    rows.append(["all", f"{report.trainable:,}", f"{report.total:,}"])
    session.reporter.table("Parameters", ["module", "trainable", "total"], rows)
    counted = f"all {report.total:,} parameters train"
    if report.trainable < report.total:
        counted = f"{report.trainable:,} of {report.total:,} parameters train (-{report.reduction:.2f} %)"
    session.reporter.result(counted)
    return report


def show_plan(session: Session, task: TaskData, model: nn.Module) -> dict[str, Any]:
    """Print what a run would do, and return it as plain data."""
    report = show_parameters(session, model)
    sizes = {"train": len(task.train), "val": len(task.val)} | {n: len(s) for n, s in task.reports.items()}
    counted = ", ".join(f"{size} {name}" for name, size in sizes.items())
    frozen = num_frozen_blocks(model)
    told = [f"blocks below {frozen} learn nothing"] if frozen else []
    for line in (*told, f"compute: {session.compute}", f"sentences: {counted}"):
        session.reporter.result(line)
    session.reporter.result("dry run: nothing was written")
    return {
        "command": session.command,
        "settings": session.settings.model_dump(mode="json"),
        "parameters": report.as_dict(),
        "sentences": sizes,
        "compute": str(session.compute),
    }
