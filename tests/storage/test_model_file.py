"""Model files: `ckpt.pt` and a student's `student.safetensors`, which is read without torch."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from support.students import student

from colakit import load
from colakit.config.resolve import resolve
from colakit.data.tokenizer import train_tokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.storage.model_file import (
    CHECKPOINT_NAME,
    METADATA_KEY,
    STUDENT_NAME,
    Companion,
    check_origin,
    read_companion,
    read_model_file,
    read_student_file,
)

Run = Callable[..., tuple[int, str, str]]
SHAPES: list[dict[str, Any]] = [{}, {"num_embeddings": 12}, {"cell": "gru", "num_layers": 2}]


def save_student(folder: Path, **shape: Any) -> SentenceClassifier:
    tokenizer = train_tokenizer(["the cat sleeps."], 270)
    model = student(vocab_size=tokenizer.vocab_size, num_labels=2, **shape)
    classifier = SentenceClassifier(
        model, tokenizer, ("unacceptable", "acceptable"), 12, 0.4, origin={"seed": 0}
    )
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
    content, _ = read_model_file(tmp_path / CHECKPOINT_NAME)
    assert metadata.checkpoint_sha256 is not None
    assert metadata.model_copy(update={"checkpoint_sha256": None}) == content


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    classifier = save_student(tmp_path)
    with torch.no_grad():
        classifier.model.score.bias[1] = value
    classifier.save(tmp_path / CHECKPOINT_NAME)
    for path in (tmp_path / CHECKPOINT_NAME, tmp_path / STUDENT_NAME):
        with pytest.raises(ColakitError, match=r"score\.bias has values that are infinite or NaN"):
            load_classifier(path)
    with pytest.raises(ColakitError, match=r"score\.bias has values that are infinite or NaN"):
        StudentPredictor(tmp_path)


def test_student_file_is_refused_beside_another_checkpoint(tmp_path: Path) -> None:
    save_student(tmp_path)
    save_student(tmp_path / "other", cell="gru")
    for path in (tmp_path, tmp_path / CHECKPOINT_NAME, tmp_path / STUDENT_NAME):
        StudentPredictor(path)
    shutil.copy(tmp_path / "other" / CHECKPOINT_NAME, tmp_path)
    for path in (tmp_path, tmp_path / CHECKPOINT_NAME):
        with pytest.raises(ColakitError, match=r"was not written with ckpt\.pt"):
            StudentPredictor(path)
    StudentPredictor(tmp_path / STUDENT_NAME)


@pytest.mark.parametrize("command", ["predict", "predict --dry-run", "export"])
@pytest.mark.parametrize("damage", ["cut", "folder", "of another ckpt.pt"])
def test_a_damaged_student_file_is_not_passed_over(
    command: str, damage: str, colakit: Run, tmp_path: Path
) -> None:
    save_student(tmp_path)
    path = tmp_path / STUDENT_NAME
    arguments = {
        "export": ("export", tmp_path, "--data", "builtin", "--license", "mit", "--out", tmp_path / "out"),
        "predict": ("predict", "--model", tmp_path / CHECKPOINT_NAME, tmp_path / "text"),
    }[command.split()[0]] + tuple(command.split()[1:])
    (tmp_path / "text").write_text("the cat sleeps.\n")
    good = path.read_bytes()
    path.unlink()
    if command != "export":
        assert colakit(*arguments)[0] == 0  # no file: `ckpt.pt` is read
    if damage == "folder":
        path.mkdir()
    elif damage == "cut":
        path.write_bytes(good[:-4])
    else:
        save_student(tmp_path / "other", cell="gru")
        path.write_bytes((tmp_path / "other" / STUDENT_NAME).read_bytes())
    code, _, err = colakit(*arguments)
    assert code == 2
    assert f"{STUDENT_NAME}: " in " ".join(err.split()), err
    with pytest.raises(ColakitError, match=r"student\.safetensors: "):
        load(tmp_path)


def test_foreign_and_damaged_student_files_are_refused(tmp_path: Path) -> None:
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
        for read in (read_student_file, read_model_file):
            with pytest.raises(ColakitError, match=r"odd\.safetensors") as caught:
                read(path)
            assert caught.value.exit_code == 2


INVALID: dict[str, dict[str, Any]] = {
    "label_names must be 2 strings": {"label_names": ["a"], "threshold": None},
    "label_names.0: must be text": {"label_names": [1, 2]},
    "max_tokens: must be at least 1": {"max_tokens": 0},
    "threshold: must be at most 1": {"threshold": 1.5},
    "threshold needs 2 labels": {"label_names": ["a", "b", "c"]},
    "origin: command: must be": {"origin": {"command": 3}},
    "origin: settings: must be": {"origin": {"settings": "x"}},
    "origin: settings.finetune: must be": {"origin": {"settings": {"finetune": 5}}},
    "origin: settings.finetune.leave_out: must be": {"origin": {"settings": {"finetune": {"leave_out": 3}}}},
    "origin: settings.finetune.leave_out: .*pattern": {
        "origin": {"settings": {"finetune": {"leave_out": "0/0"}}}
    },
    "origin: settings.data: must be": {"origin": {"settings": {"data": 5}}},
    "origin: settings.data.text_column: must be": {"origin": {"settings": {"data": {"text_column": [1]}}}},
    "origin: seed: must be": {"origin": {"seed": [1]}},
    "tokenizer.end_of_text_id": {"tokenizer": {"json": "{}", "prefix": True, "suffix": True}},
    "hidden_size": {"config": {"vocab_size": 9, "hidden_size": 1_000_000_000}},
    "num_labels": {"config": {"vocab_size": 9, "num_labels": 10_000_000}},
    "a number has more than 40 digits|too many digits": {"max_tokens": 10**50},
    "must contain only tensors and plain data": {b"key": 1},
    "contains NUL": {"label_names": ["a", "\0"]},
    "surrogates": {"label_names": ["a", "\ud800"]},
    "format: 2 is not supported": {"format": 2},
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_metadata_is_named(message: str, tmp_path: Path) -> None:
    save_student(tmp_path)
    path = tmp_path / CHECKPOINT_NAME
    torch.save({**torch.load(path, weights_only=True), **INVALID[message]}, path)
    with pytest.raises(ColakitError, match=message) as caught:
        load_classifier(path)
    assert caught.value.message.startswith(str(path))


@pytest.mark.parametrize("text", ["{", "[]", '{"origin": 1}'])
def test_damaged_companion_is_named(text: str, tmp_path: Path) -> None:
    assert read_companion(tmp_path) == Companion()
    (tmp_path / "colakit.json").write_text(text)
    with pytest.raises(ColakitError, match=r"colakit\.json: "):
        read_companion(tmp_path)


def test_every_section_of_the_settings_is_a_valid_record() -> None:
    settings = resolve(assignments=["track=[mlflow]"], environment={}).settings.model_dump(mode="json")
    assert check_origin({"settings": settings})["settings"] == settings
