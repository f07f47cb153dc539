"""Comparison of exported files with colakit's own answers on a labelled split.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.data.tokens import plan_inference
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.evaluation.metrics import measure
from colakit.evaluation.tables import Table
from colakit.export.prepare import PreparedModel
from colakit.inference.decisions import predict_labels
from colakit.inference.onnx_predictor import BATCH_TOKENS
from colakit.inference.sentence_predictor import SentencePredictor

FP32 = "fp32"
MAX_DIFFERENCE = 1e-3  # of a logit, in an fp32 file
MAX_FLIPPED = {True: 0.001, False: 0.02}  # is the file fp32? -> share of the answers
MAX_MCC_CHANGE = 0.02
NUM_TIMED = 100  # sentences that are timed one by one

Logits = NDArray[np.float32]
Answer = Callable[[Sequence[str]], Logits]
"""Maps N sentences to (N, C) logits."""


@dataclass(frozen=True)
class FileParity:
    """One file compared with colakit's own answers.

    Attributes:
        file: its path in the exported folder; `colakit` for the run itself.
        weights: how they are stored: `fp32`, or a name of `quantize`.
        size: bytes.
        max_difference: largest difference of a logit; of the run itself 0.
        flipped: number of sentences that get another label.
        mcc: of the labels by the model's threshold.
        argmax_mcc: of the most probable labels, which pipelines take.
        milliseconds: median time of one sentence, its tokenization included.
        sentences_per_second: of the whole split.
    """

    file: str
    weights: str
    size: int
    max_difference: float
    flipped: int
    mcc: float
    argmax_mcc: float
    milliseconds: float
    sentences_per_second: float


@dataclass(frozen=True)
class ParityReport:
    """All files of an export on one split."""

    split: str
    num_sentences: int
    fingerprint: str  # of the split
    files: list[FileParity]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Return the answers and the speed, with a row for the run and one for each file."""
        answers, speed = [], []
        for each in self.files:
            difference, mcc = f"{each.max_difference:.1e}", f"{each.mcc:.3f}"
            answers.append([each.file, difference, f"{each.flipped:,}", mcc, f"{each.argmax_mcc:.3f}"])
            size, time_of_one = f"{each.size / 1e6:.2f}", f"{each.milliseconds:.2f}"
            speed.append([each.file, each.weights, size, time_of_one, f"{each.sentences_per_second:,.0f}"])
        title = f"Parity on {self.split} ({self.num_sentences:,} sentences)"
        return [
            (title, ["file", "max |Δ logit|", "flipped", "MCC", "argmax MCC"], answers),
            ("Size and time of one sentence", ["file", "weights", "MB", "ms", "sentences/s"], speed),
        ]

    def check(self) -> None:
        """Raise `ColakitError` if a file answers too differently from the run."""
        for each in self.files[1:]:
            if (fault := self.fault(each)) is not None:
                repair = (
                    "Report this fault." if each.weights == FP32 else "--quantize none exports fp32 only."
                )
                raise ColakitError(
                    f"{each.file}: {fault}", hint=f"Nothing was written. {repair}", exit_code=EXIT_FAILED
                )

    def fault(self, file: FileParity) -> str | None:
        """Return how far a file's answers are from the run's, or None if near enough."""
        own, is_fp32 = self.files[0], file.weights == FP32
        flipped, change = file.flipped / self.num_sentences, abs(file.mcc - own.mcc)
        limits = [f"at most {100 * MAX_FLIPPED[is_fp32]:g} % of the answers may flip"]
        fits = flipped <= MAX_FLIPPED[is_fp32]
        if is_fp32:
            limits.append(f"a logit may differ by {MAX_DIFFERENCE:g}")
            fits &= file.max_difference <= MAX_DIFFERENCE
        else:
            limits.append(f"MCC may change by {MAX_MCC_CHANGE:g}")
            fits &= change <= MAX_MCC_CHANGE
        if fits:
            return None
        return (
            f"{file.flipped:,} of {self.num_sentences:,} answers flipped ({100 * flipped:.2f} %), "
            f"MCC {own.mcc:.3f} became {file.mcc:.3f}, the largest difference of a logit is "
            f"{file.max_difference:.2g}; {', and '.join(limits)}"
        )


class Comparison:
    """Measures files against the run's own logits.

    Args:
        own: the run as `predict` loads it.
        own_size: bytes of its files.
        threshold, temperature: of the run.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        split: Split,
        own: SentencePredictor,
        own_size: int,
        threshold: float | None,
        temperature: float,
    ) -> None:
        self.prepared, self.split, self.labels = prepared, split, split.require_labels()
        sentences = list(split.sentences)
        logits, timing = _timed(answers_of(own), sentences)
        self.expected = prepared.expected(logits)
        self.calibrated = logits / np.float32(temperature)
        self.answers = predict_labels(logits, threshold, temperature)
        self.files = [self._parity("colakit", FP32, own_size, logits, self.answers, 0.0, timing)]

    def add(self, file: str, size: int, answer: Answer, weights: str = FP32) -> FileParity:
        """Measure a file of the exported folder."""
        logits, timing = _timed(answer, list(self.split.sentences))
        labels = predict_labels(logits, self.prepared.classifier.threshold)
        difference = float(np.abs(logits - self.expected).max(initial=0.0))
        self.files.append(self._parity(file, weights, size, logits, labels, difference, timing))
        return self.files[-1]

    def report(self) -> ParityReport:
        """Return the report on all files so far."""
        return ParityReport(self.split.name, len(self.split), self.split.fingerprint(), self.files)

    def _parity(
        self,
        file: str,
        weights: str,
        size: int,
        logits: Logits,
        labels: NDArray[np.int64],
        difference: float,
        timing: tuple[float, float],
    ) -> FileParity:
        return FileParity(
            file=file,
            weights=weights,
            size=size,
            max_difference=difference,
            flipped=int((labels != self.answers).sum()),
            mcc=measure(logits, self.labels, labels).mcc,
            argmax_mcc=measure(logits, self.labels, logits.argmax(axis=1)).mcc,
            milliseconds=timing[0],
            sentences_per_second=timing[1],
        )


def answers_of(predictor: SentencePredictor) -> Answer:
    """Return the logits of a predictor as a function of sentences."""
    return lambda sentences: predictor.logits(predictor.encode(sentences))


def transformers_answers(folder: Path, adapt: Callable[[Any], Any] = lambda model: model) -> Answer:
    """Return the logits of transformers' own classes on an exported folder, with its own tokenizer.

    Args:
        adapt: adds an adapter to the model.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    plain = AutoModelForSequenceClassification.from_pretrained(str(folder), local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about their own options
        model = adapt(plain).eval()

    def answer(sentences: Sequence[str]) -> Logits:
        rows = np.empty((len(sentences), model.config.num_labels), dtype=np.float32)
        lengths = np.array([len(ids) for ids in tokenizer(list(sentences), truncation=True)["input_ids"]])
        for index in plan_inference(lengths, 256, BATCH_TOKENS):
            texts = [sentences[i] for i in index]
            batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                rows[index] = model(**batch).logits.float().numpy()
        return rows

    return answer


def _timed(answer: Answer, sentences: list[str]) -> tuple[Logits, tuple[float, float]]:
    """Return the logits, the median milliseconds of one sentence, and sentences a second."""
    seconds = []
    for sentence in [*sentences[:3], *sentences[:NUM_TIMED]]:
        begin = time.perf_counter()
        answer([sentence])
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    logits = answer(sentences)
    return logits, (1000 * median(seconds[3:] or seconds), len(sentences) / (time.perf_counter() - begin))
