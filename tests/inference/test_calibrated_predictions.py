"""Every way to label sentences writes calibrated probabilities; --raw changes them, and not the labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.students import student

from colakit.data.tokenizer import train_tokenizer
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.decisions import probabilities
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.predictor import Predictor
from colakit.runtime.device import resolve_compute

Run = Callable[..., tuple[int, str, str]]
SENTENCES = ["The cat sleeps.", "The cat sleep.", "Whom did they say came?", "It."]
TEMPERATURE = 0.02


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained student, whose logits are near 0, with a low temperature."""
    tokenizer = train_tokenizer(SENTENCES, 270)
    network = student(vocab_size=tokenizer.vocab_size, num_labels=2)
    folder = tmp_path_factory.mktemp("run")
    classifier = SentenceClassifier(network, tokenizer, ("bad", "good"), 40, origin={"command": "distill"})
    classifier.temperature = TEMPERATURE
    logits = classifier.logits(classifier.encode(SENTENCES), resolve_compute("cpu", "fp32"))
    classifier.threshold = float(np.median(probabilities(logits, TEMPERATURE)[:, 1]))  # between sentences
    classifier.save(folder / "ckpt.pt")
    return folder


def test_both_predictors_write_calibrated_probabilities(run: Path) -> None:
    compute = resolve_compute("cpu", "fp32")
    classifier = load_classifier(run)
    logits = classifier.logits(classifier.encode(SENTENCES), compute)
    expected = probabilities(logits, TEMPERATURE)
    assert np.abs(expected - probabilities(logits)).max() > 0.05
    for predictor in (StudentPredictor(run), Predictor(classifier, compute)):
        predictions = predictor(SENTENCES)
        np.testing.assert_allclose(predictions.probs, expected, atol=1e-3)
        assert predictions.labels.tolist() == (predictions.probs[:, 1] >= classifier.threshold).tolist()


def test_raw_probabilities_have_the_same_labels(run: Path, colakit: Run, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES) + "\n")
    tables = []
    for flags in ([], ["--raw"]):
        code, out, err = colakit("predict", "--model", run, tmp_path / "sentences.txt", *flags)
        assert code == 0, err
        tables.append(list(csv.DictReader(io.StringIO(out), delimiter="\t")))
    calibrated, raw = tables
    label = next(iter(calibrated[0]))
    assert [row[label] for row in calibrated] == [row[label] for row in raw]
    assert len({row[label] for row in raw}) == 2
    classifier = load_classifier(run)
    logits = classifier.logits(classifier.encode(SENTENCES), resolve_compute("cpu", "fp32"))
    np.testing.assert_allclose([float(row["p(good)"]) for row in raw], probabilities(logits)[:, 1], atol=2e-6)
