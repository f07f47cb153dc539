"""Files that ask for too much are refused before any work, with the fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stress.hostile import RUN_FILES, read_run, tokenizer

from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.storage.tensors import read_tensors

LINE = json.dumps(RUN_FILES["metrics.jsonl"])
FAULTS: dict[str, tuple[str, str]] = {
    "summary.json: seed: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "seed": [1]})),
    "summary.json: best: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "best": None})),
    "summary.json: splits: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "splits": 3})),
    "summary.json: command is missing": ("summary.json", "{}"),
    "0.evaluation.epoch: must be": ("metrics.jsonl", LINE.replace('"epoch": 1.0', '"epoch": [1]') + "\n"),
    "more than 40 digits": ("metrics.jsonl", LINE.replace("1.0", "9" * 50) + "\n"),
    "nested more than": ("metrics.jsonl", LINE.replace("1.0", "[" * 99 + "]" * 99) + "\n"),
    "contains NUL": ("metrics.jsonl", LINE.replace("step", "\0") + "\n"),
    "has no evaluation": ("metrics.jsonl", LINE[:40]),
    "splits.dev.labels.0: must be": (
        "predictions.json",
        json.dumps({"label_names": ["a"], "splits": {"dev": {"labels": [2**70], "predictions": [0]}}}),
    ),
    "folds: must be": ("runs.json", json.dumps({"command": "finetune", "folds": 10**9})),
}


def write_run(folder: Path) -> None:
    for name, value in RUN_FILES.items():
        (folder / name).write_text(json.dumps(value) + "\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_run_folder_is_named(fault: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    read_run(tmp_path)
    name, text = FAULTS[fault]
    (tmp_path / name).write_text(text)
    with pytest.raises(ColakitError, match=fault) as caught:
        read_run(tmp_path)
    assert name in caught.value.message
    assert caught.value.exit_code == 2


def contains_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def repeats() -> Any:
    value: Any = [0]
    for _ in range(30):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([{} for _ in range(300_000)], "operations"),
        (contains_itself(), "contains itself"),
        (repeats(), "contains itself"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "only tensors and plain data"),
        (bytearray(8), "only tensors and plain data"),
        (10**60, "too many digits"),
    ],
)
def test_a_torch_file_that_is_no_plain_data_is_refused(value: Any, fault: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(ColakitError, match=fault):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model": {"type": "Other", "vocab": {}}}, "model.type: must be"),
        ({"model": {"type": "BPE"}}, "model.vocab is missing"),
        ({"model": {"vocab": {"a": 2**24}}}, "model.vocab: 'a' must have"),
        ({"pre_tokenizer": {"pattern": {"Regex": "(a+)+"}}}, "exponential time"),
        ({"added_tokens": [{"id": 1, "content": "x"}] * 2000}, "added_tokens"),
        ({"added_tokens": [{"id": 2**24, "content": "x"}]}, "added_tokens.0.id: must be less than"),
    ],
)
def test_a_fault_of_a_tokenizer_is_named(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    file = json.loads(tokenizer().backend.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**file, **change}))
    with pytest.raises(ColakitError, match=fault):
        SentenceTokenizer.from_base(tmp_path)


def test_an_end_of_text_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer().backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "x y"}')
    with pytest.raises(ColakitError, match="'x y' is not in the vocabulary"):
        SentenceTokenizer.from_base(tmp_path)
