"""`colakit baseline`: its run folders are those of other commands, and its logits are scikit-learn's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from colakit import load
from colakit.config.data import DataSettings
from colakit.data.corpora import Corpus
from colakit.data.loading import load_dataset
from colakit.data.splits import train_val_split
from colakit.inference.baseline import BaselineClassifier
from colakit.inference.decisions import probabilities
from colakit.models.ngrams import WORD_PATTERN
from colakit.utils.console import SilentReporter

Command = Callable[..., tuple[int, str, str]]


def fit(toy: Path, out: Path, colakit: Command, *options: object) -> dict[str, object]:
    code, stdout, err = colakit("baseline", "--data", toy / "corpus", "--out", out, "--json", *options)
    assert code == 0, err
    return json.loads(stdout)


def corpus_of(toy: Path) -> Corpus:
    settings = DataSettings(path=str(toy / "corpus"))
    return load_dataset(settings, toy / "cache", SilentReporter(), before_fetch=None)


def test_probabilities_are_those_of_scikit_learn(toy: Path, tmp_path: Path, colakit: Command) -> None:
    fit(toy, tmp_path / "run", colakit, "--set", "baseline.penalties=10", "--set", "baseline.words=2")
    model = load(tmp_path / "run")
    assert isinstance(model, BaselineClassifier)
    corpus = corpus_of(toy)
    train, _ = train_val_split(corpus.split("train"), 0.1, 0)
    words = TfidfVectorizer(token_pattern=WORD_PATTERN, ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    features = sparse.hstack([part.fit_transform(train.sentences) for part in (words, characters)])
    fitted = LogisticRegression(C=10, class_weight="balanced", max_iter=1000).fit(
        features, train.require_labels()
    )
    sentences = [*corpus.split("id_dev").sentences, "Ünseen words — only.", ""]
    expected = sparse.hstack([part.transform(sentences) for part in (words, characters)])
    np.testing.assert_allclose(
        probabilities(model.logits(sentences)), fitted.predict_proba(expected), atol=1e-5
    )
    calibrated = probabilities(model.logits(sentences), model.temperature)
    np.testing.assert_array_equal(model(sentences).probs, calibrated)


def test_equal_runs_write_equal_bytes_without_pickle(toy: Path, tmp_path: Path, colakit: Command) -> None:
    for name in ("first", "second"):
        fit(toy, tmp_path / name, colakit)
    for name in ("baseline.safetensors", "predictions.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert not list((tmp_path / "first").rglob("*.pt"))
    with safe_open(tmp_path / "first/baseline.safetensors", framework="np") as file:
        assert "score.weight" in file.keys()  # noqa: SIM118


def test_the_kept_penalty_has_the_highest_mcc_on_val(toy: Path, tmp_path: Path, colakit: Command) -> None:
    scores = {}
    for penalty in (0.01, 1.0, 100.0):
        summary = fit(toy, tmp_path / str(penalty), colakit, "--set", f"baseline.penalties={penalty}")
        scores[penalty] = summary["splits"]["val"]["mcc"]  # type: ignore[index]
    chosen = fit(toy, tmp_path / "all", colakit, "--set", "baseline.penalties=0.01,1,100")
    assert scores[chosen["penalty"]] == max(scores.values())  # type: ignore[index]


def test_the_majority_is_the_most_frequent_label(toy: Path, tmp_path: Path, colakit: Command) -> None:
    summary = fit(toy, tmp_path / "run", colakit, "--kind", "majority")
    for split in summary["splits"].values():  # type: ignore[attr-defined]
        assert split["collapsed"]
        assert split["accuracy"] == split["majority_rate"]
        assert split["mcc"] == 0
    train, _ = train_val_split(corpus_of(toy).split("train"), 0.1, 0)
    frequencies = np.bincount(train.require_labels()) / len(train)
    model = load(tmp_path / "run")
    assert isinstance(model, BaselineClassifier)
    np.testing.assert_allclose(probabilities(model.logits(["Any sentence."]))[0], frequencies, rtol=1e-6)


def test_baselines_are_compared_predicted_and_resumed_as_other_runs(
    toy: Path, tmp_path: Path, colakit: Command
) -> None:
    fit(toy, tmp_path / "tfidf", colakit)
    fit(toy, tmp_path / "majority", colakit, "--kind", "majority")
    bag = ["--kind", "bag", "--base", toy / "base", "--set", "student_training.epochs=1"]
    assert fit(toy, tmp_path / "bag", colakit, *bag)["model"] == "baseline (bag)"
    runs = [tmp_path / name for name in ("tfidf", "majority", "bag")]
    code, out, err = colakit("evaluate", *runs, "--json")
    assert code == 0, err
    rows = json.loads(out)["splits"]["id_dev"]["models"]
    assert [row["model"] for row in rows] == ["tfidf", "majority", "bag"]
    recorded = json.loads((tmp_path / "tfidf/summary.json").read_text())["splits"]["id_dev"]
    assert rows[0]["metrics"]["mcc"] == pytest.approx(recorded["mcc"])
    before = (tmp_path / "tfidf/baseline.safetensors").stat().st_mtime_ns
    fit(toy, tmp_path / "tfidf", colakit, "--resume")
    assert (tmp_path / "tfidf/baseline.safetensors").stat().st_mtime_ns == before
    other = ["--data", toy / "corpus", "--kind", "majority", "--resume", "--out", tmp_path / "tfidf"]
    code, _, err = colakit("baseline", *other)
    assert (code, "was started differently" in err) == (2, True), err
    (tmp_path / "sentences.txt").write_text("The cat sleeps.\nThe cat sleep.\n")
    for run in runs:
        code, out, err = colakit("predict", "--model", run, tmp_path / "sentences.txt")
        assert code == 0, err
        assert len(out.splitlines()) == 3
    assert colakit("plot", *runs, "--out", tmp_path / "plots")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0,1"], "the same with every seed"),
        (["--set", "baseline.words=0", "--set", "baseline.characters=0"], "words or characters"),
        (["--kind", "bag", "--set", "student.pooling=last"], "a bag has mean, max or attention"),
        (["--kind", "bag", "--set", "student_training.lm_weight=1"], "reads no neighbouring tokens"),
    ],
)
def test_a_meaningless_baseline_is_refused(
    options: list[str], message: str, toy: Path, tmp_path: Path, colakit: Command
) -> None:
    where = ["--base", toy / "base", "--data", toy / "corpus", "--out", tmp_path / "run"]
    code, _, err = colakit("baseline", *where, *options)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "run").exists()


def test_a_baseline_is_no_teacher(toy: Path, tmp_path: Path, colakit: Command) -> None:
    fit(toy, tmp_path / "run", colakit)
    where = ["--base", toy / "base", "--data", toy / "corpus", "--out", tmp_path / "student"]
    code, _, err = colakit("distill", "--teacher", tmp_path / "run", *where)
    assert code == 2
    assert "is a baseline of n-grams" in err
