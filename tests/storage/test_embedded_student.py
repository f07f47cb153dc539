"""The student that `student.init_from: builtin` names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from colakit.data.builtin.corpus import builtin_pairs
from colakit.distillation.initial_weights import EMBEDDED_STUDENT, load_student
from colakit.inference.numpy_predictor import StudentPredictor

Run = Callable[..., tuple[int, str, str]]
SHAPE = ["--set", "student.embedding_size=96", "--set", "student.hidden_size=192"]


def test_it_prefers_the_acceptable_sentence_of_most_pairs() -> None:
    """It has not read the built-in corpus; chance is a half."""
    pairs = [pair for pair in builtin_pairs() if pair.split == "id_dev"][:600]
    student = StudentPredictor(EMBEDDED_STUDENT)
    good, bad = ([getattr(pair, name) for pair in pairs] for name in ("sentence_good", "sentence_bad"))
    column = student.label_names.index("real")
    scores = [student(sentences).probs[:, column] for sentences in (good, bad)]
    assert np.mean(scores[0] > scores[1]) > 0.65


def test_a_student_starts_with_its_weights_and_records_it(toy: Path, colakit: Run, tmp_path: Path) -> None:
    words = ["train-scratch", "--base", "builtin", "--data", toy / "corpus", "--epochs", 1, *SHAPE]
    for start in ("builtin", EMBEDDED_STUDENT):
        out = tmp_path / Path(start).name
        code, _, err = colakit(*words, "--set", f"student.init_from={start}", "--out", out)
        assert code == 0, err
    runs = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("builtin", "student")]
    expected = load_student("builtin", "student.init_from")[0].fingerprint()
    assert [run["start_fingerprint"] for run in runs] == [expected] * 2
    assert runs[0]["splits"] == runs[1]["splits"]


def test_another_shape_or_tokenizer_is_refused(toy: Path, colakit: Run, tmp_path: Path) -> None:
    words = ["train-scratch", "--data", toy / "corpus", "--set", "student.init_from=builtin"]
    code, _, err = colakit(*words, "--base", "builtin", "--hidden-size", 64, "--out", tmp_path / "a")
    assert code == 2
    assert "hidden_size 192 (settings: 64)" in " ".join(err.split())
    code, _, err = colakit(*words, "--base", toy / "base", *SHAPE, "--out", tmp_path / "b")
    assert code == 2
    assert "its tokenizer is another one" in " ".join(err.split())


@pytest.mark.parametrize("private", [os.sep + name + os.sep for name in ("root", "home", "tmp", "work")])
def test_its_file_names_no_folder_of_the_machine_that_made_it(private: str) -> None:
    assert private.encode() not in (EMBEDDED_STUDENT / "student.safetensors").read_bytes()
