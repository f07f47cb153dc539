"""Model files: `ckpt.pt` and a student's `student.safetensors`, which is read without torch."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from support.students import student

from colakit.data.tokenizer import train_tokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.storage import model_file
from colakit.storage.model_file import (
    CHECKPOINT_NAME,
    METADATA_KEY,
    STUDENT_NAME,
    check_metadata,
    read_companion,
    read_model_file,
    read_student_file,
)

SHAPES: list[dict[str, Any]] = [{}, {"num_embeddings": 12}, {"cell": "gru", "num_layers": 2}]


def save_student(folder: Path, **shape: Any) -> SentenceClassifier:
    tokenizer = train_tokenizer(["the cat sleeps."], 270)
    model = student(vocab_size=tokenizer.vocab_size, num_labels=2, **shape)
    classifier = SentenceClassifier(model, tokenizer, ("bad", "good"), 12, 0.4, origin={"seed": 0})
    folder.mkdir(exist_ok=True)
    classifier.save(folder / CHECKPOINT_NAME)
    return classifier


@pytest.mark.parametrize("shape", SHAPES)
def test_student_file_holds_the_tensors_and_metadata_of_the_checkpoint(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    classifier = save_student(tmp_path, **shape)
    metadata, arrays = read_student_file(tmp_path / STUDENT_NAME)
    expected = classifier.model.state_dict()
    assert arrays.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(torch.from_numpy(arrays[name]), tensor), name
    content = read_model_file(tmp_path / CHECKPOINT_NAME)
    del content["tensors"], metadata["checkpoint_sha256"]
    assert metadata == content


def test_equal_students_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_student(tmp_path / name)
    load_classifier(tmp_path / "a").save(tmp_path / "a" / CHECKPOINT_NAME)
    for name in (CHECKPOINT_NAME, STUDENT_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_student_file_alone_loads_as_its_checkpoint_does(tmp_path: Path) -> None:
    classifier = save_student(tmp_path)
    (tmp_path / CHECKPOINT_NAME).unlink()
    for path in (tmp_path, tmp_path / STUDENT_NAME):
        assert load_classifier(path).fingerprint() == classifier.fingerprint()


def test_student_file_is_refused_beside_another_checkpoint(tmp_path: Path) -> None:
    save_student(tmp_path)
    save_student(tmp_path / "other", cell="gru")
    for path in (tmp_path, tmp_path / CHECKPOINT_NAME, tmp_path / STUDENT_NAME):
        read_student_file(path)
    shutil.copy(tmp_path / "other" / CHECKPOINT_NAME, tmp_path)
    for path in (tmp_path, tmp_path / CHECKPOINT_NAME):
        with pytest.raises(ValueError, match=r"was not written with ckpt\.pt"):
            read_student_file(path)
    read_student_file(tmp_path / STUDENT_NAME)


def test_foreign_and_damaged_student_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_student(tmp_path)
    good = (tmp_path / STUDENT_NAME).read_bytes()
    path = tmp_path / "odd.safetensors"
    deep = {METADATA_KEY: "[" * 50_000}
    damaged = {
        "text": b"colakit",
        "empty": b"",
        "cut": good[:-4],
        "longer": good + b"1234",
        "no metadata": save({"x": np.zeros(3)}),
        "deep metadata": save({"x": np.zeros(3)}, deep),
        "metadata of no object": save({"x": np.zeros(3)}, {METADATA_KEY: "[]"}),
        "larger than its data": struct.pack("<Q", 60)
        + json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode().ljust(60)
        + bytes(4),
    }
    for raw in damaged.values():
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"not a student file|its header has"):
            read_student_file(path)
        with pytest.raises(ColakitError, match="not a colakit model file"):
            read_model_file(path)
    monkeypatch.setattr(model_file, "MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match="its header has"):
        read_student_file(tmp_path / STUDENT_NAME)


METADATA = {"label_names": ["a", "b"], "max_tokens": 8, "threshold": 0.5, "origin": {}}
INVALID: dict[str, dict[str, Any]] = {
    "label_names must be 2 strings": {"label_names": ["a"]},
    "label_names must be": {"label_names": [1, 2]},
    "max_tokens": {"max_tokens": 0},
    "threshold must be": {"threshold": 1.5},
    "origin": {"origin": {"command": 3}},
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_metadata_is_named(message: str) -> None:
    check_metadata(METADATA, 2)
    with pytest.raises(ValueError, match=message):
        check_metadata({**METADATA, **INVALID[message]}, 2)


@pytest.mark.parametrize("text", ["{", "[]", '{"origin": 1}'])
def test_damaged_companion_is_named(text: str, tmp_path: Path) -> None:
    assert read_companion(tmp_path) == {}
    (tmp_path / "colakit.json").write_text(text)
    with pytest.raises(ColakitError, match=r"colakit\.json: cannot be read"):
        read_companion(tmp_path)
