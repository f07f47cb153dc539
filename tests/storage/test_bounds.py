"""Files that ask for too much are refused before any work, with the fault named."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies
from stress import hostile
from stress.hostile import (
    RUN_FILES,
    Files,
    Reader,
    aliases,
    folder_of,
    gpt_config,
    outcome,
    read_adapter_folder,
    read_ckpt,
    read_marks,
    read_pair_files,
    read_run,
    read_tokenizer,
    saved,
    tokenizer,
    zipped,
)
from stress.hostile_schema import json_of

from colakit.config.resolve import resolve
from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import load_classifier
from colakit.storage.gpt2 import load_gpt, load_tokenizer
from colakit.storage.model_file import Companion
from colakit.storage.peft import read_adapter
from colakit.storage.run_folder import RunFolder
from colakit.storage.tensors import read_tensors
from colakit.utils.documents import validate

LINE = json.dumps(RUN_FILES["metrics.jsonl"])
FAULTS: dict[str, tuple[str, str]] = {
    "summary.json: seed: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "seed": [1]})),
    "summary.json: best: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "best": None})),
    "summary.json: splits: must be": ("summary.json", json.dumps({**RUN_FILES["summary.json"], "splits": 3})),
    "summary.json: command is missing": ("summary.json", "{}"),
    "summary.json: experiment is missing": (
        "summary.json",
        json.dumps({key: value for key, value in RUN_FILES["summary.json"].items() if key != "experiment"}),
    ),
    "0.evaluation.epoch: must be": ("metrics.jsonl", LINE.replace('"epoch": 1.0', '"epoch": [1]') + "\n"),
    "more than 40 digits": ("metrics.jsonl", LINE.replace("1.0", "9" * 50) + "\n"),
    "nested more than": ("metrics.jsonl", LINE.replace("1.0", "[" * 99 + "]" * 99) + "\n"),
    "contains NUL": ("metrics.jsonl", LINE.replace("step", "\0") + "\n"),
    "not UTF-8 at byte": ("metrics.jsonl", LINE.replace("evaluation", "\udcff") + "\n"),
    "not JSON": ("metrics.jsonl", LINE[:40] + "\n" + LINE + "\n"),
    "0: must be an object": ("metrics.jsonl", f"[{LINE}]\n"),
    "0: Unable to extract tag": ("metrics.jsonl", "{}\n"),
    "0.evaluation.val is missing": (
        "metrics.jsonl",
        '{"event": "evaluation", "step": 1, "epoch": 1, "train": {"loss": 1}}\n',
    ),
    "0.evaluation.step: must be at least 1": ("metrics.jsonl", LINE.replace('"step": 1', '"step": 0') + "\n"),
    "label 1 has no name": (
        "predictions.json",
        json.dumps({"label_names": ["a"], "splits": {"dev": {"labels": [1], "predictions": [0]}}}),
    ),
    "1 labels and 2 predictions": (
        "predictions.json",
        json.dumps({"label_names": ["a"], "splits": {"dev": {"labels": [0], "predictions": [0, 0]}}}),
    ),
    "131,072 are allowed": (
        "predictions.json",
        json.dumps({"label_names": ["a"], "splits": dict.fromkeys(map(str, range(200_000)), 0)}),
    ),
    "has more than 524,288 lines": ("metrics.jsonl", "{}\n" * 600_000),
    "or 65,536 bytes in a line": ("metrics.jsonl", LINE + " " * 70_000 + "\n"),
    "must have either `folds` or `seeds`": ("runs.json", json.dumps({"command": "finetune"})),
    "there must be 1 to 1000 seeds": ("runs.json", json.dumps({"command": "finetune", "seeds": [1, 1]})),
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
    (tmp_path / name).write_text(text, errors="surrogateescape")
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


def test_an_unfinished_last_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(LINE + "\n" + LINE[:40])
    _, evaluations = RunFolder(tmp_path).read_metrics()
    assert len(evaluations) == 1


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "predictions.json"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ColakitError, match=f"{name}: cannot be read .not a regular file"):
        read_run(tmp_path)


def test_a_pipe_is_no_model_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ckpt.pt")
    with pytest.raises(ColakitError, match=r"ckpt\.pt: cannot be read .not a regular file"):
        load_classifier(tmp_path / "ckpt.pt")


CONFIG_FAULTS = [
    ({"model_type": "opt"}, "model_type: must be"),
    ({"n_embd": 10**9}, "n_embd: must be at most"),
    ({"vocab_size": "x"}, "vocab_size: must be a whole number"),
    ({"n_layer": [2]}, "n_layer: must be a whole number"),
    ({"activation_function": "relu9"}, "activation"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings: must be True"),
    ({"embd_pdrop": float("nan")}, "embd_pdrop: must be"),
]


def write_base(folder: Path, **changes: Any) -> Path:
    for name, raw in folder_of("base").items():
        (folder / name).write_bytes(raw)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(("change", "fault"), CONFIG_FAULTS)
def test_a_fault_of_a_config_is_named(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ColakitError, match=rf"config\.json: .*{fault}") as caught:
        load_gpt(write_base(tmp_path, **change))
    assert caught.value.exit_code == 2


def test_fields_of_a_config_that_colakit_does_not_read_have_no_effect(tmp_path: Path) -> None:
    others = {"bos_token_id": [1], "eos_token_id": "x", "use_cache": "x", "layer_types": 3}
    beyond = {"sep_token_id": 10**9, "pad_token_id": 10**9, "num_labels": 10_000_000}
    model = load_gpt(write_base(tmp_path, **others, **beyond))
    assert model.config == gpt_config()


def test_merges_of_unknown_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "<|endoftext|>": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na x\n")
    with pytest.raises(ColakitError, match=r"vocab\.json: cannot be read"):
        SentenceTokenizer.from_base(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_arrays_nested_deeply_in_a_base_are_refused(name: str, tmp_path: Path) -> None:
    (write_base(tmp_path) / "tokenizer.json").write_text(tokenizer().backend.to_str())
    (tmp_path / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ColakitError, match=f"{name}: nested more than 32 levels deep"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece"])
def test_an_unknown_token_outside_the_vocabulary_is_refused_or_unused(kind: str, tmp_path: Path) -> None:
    file = json.loads(tokenizer().backend.to_str())
    file["model"] |= {"type": kind, "unk_token": "nowhere", "max_input_chars_per_word": 9}
    file["model"] |= {"continuing_subword_prefix": None if kind == "BPE" else "##"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    if kind == "BPE":
        assert len(SentenceTokenizer.from_base(tmp_path).encode(["the 中"]).ids)
        return
    with pytest.raises(ColakitError, match=r"Missing \[UNK\] token from the vocabulary"):
        SentenceTokenizer.from_base(tmp_path).encode(["the 中"])


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(tmp_path: Path) -> None:
    file = json.loads(tokenizer().backend.to_str())
    file["model"]["vocab"]["zz"] = 5000
    (write_base(tmp_path) / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(ColakitError, match="its tokenizer has 5,001 tokens, but the model 274 embeddings"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"target_modules": ["x"] * 10_000}, "target_modules: must have at most 4096 items"),
        ({"target_modules": 5}, "target_modules: must be text"),
        ({"layers_to_transform": [10**9]}, "layers_to_transform.0: must be "),
        ({"layers_to_transform": "x"}, "layers_to_transform: must be a whole number"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path: must be text"),
        ({"peft_type": 5}, "peft_type: must be 'LORA'"),
        ({"r": 10**9}, "r: must be at most 65536"),
        ({"alpha_pattern": {f"x{i}": 1 for i in range(2000)}}, "alpha_pattern: .* at most 1024 items"),
    ],
)
def test_a_fault_of_an_adapter_is_named(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    for name, raw in folder_of("adapter").items():
        (tmp_path / name).write_bytes(raw)
    config = json.loads((tmp_path / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ColakitError, match=rf"adapter_config\.json: {fault}"):
        read_adapter(tmp_path)


def test_a_model_file_of_many_empty_objects_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was built"))
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02](" + b"}" * 1_000_000 + b"e.")  # 70 MB of objects
    with pytest.raises(ColakitError, match="values and operations"):
        read_tensors(tmp_path / "ckpt.pt")


def adapter_of_many_patterns() -> Files:
    files = folder_of("adapter")
    config = json.loads(files["adapter_config.json"])
    config["alpha_pattern"] = {f"x{i}": 1 for i in range(100_000)}
    return {**files, "adapter_config.json": json_of(config)}


def tokenizer_of_many_tokens() -> Files:
    file = json.loads(tokenizer().backend.to_str())
    (token, *_) = file["added_tokens"]
    file["added_tokens"] = [{**token, "id": i, "content": f"<{i}>"} for i in range(100_000)]
    return {"tokenizer.json": json_of(file)}


def base_of_many_labels() -> Files:
    files = folder_of("base")
    config = {**json.loads(files["config.json"]), "id2label": {str(i): "x" for i in range(200_000)}}
    return {**files, "config.json": json_of(config)}


LARGE: dict[str, tuple[Callable[[Path], object], Callable[[], Files]]] = {
    "100 MB of empty objects": (
        read_ckpt,
        lambda: {"ckpt.pt": zipped({"x/data.pkl": b"\x80\x02](" + b"}" * 10**8 + b"e."})},
    ),
    "pickled lists that repeat": (read_ckpt, lambda: {"ckpt.pt": saved(repeats())}),
    "YAML that repeats": (
        lambda folder: resolve(config=folder / "settings.yaml", environment={}),
        lambda: {"settings.yaml": aliases(40)},
    ),
    "two hundred thousand labels": (load_gpt, base_of_many_labels),
    "a hundred thousand patterns": (read_adapter_folder, adapter_of_many_patterns),
    "a hundred thousand added tokens": (read_tokenizer, tokenizer_of_many_tokens),
    "packed pairs": (read_pair_files, lambda: {"a.jsonl.gz": gzip.compress(b" " * 2**27)}),
    "a hundred thousand annotations": (
        read_marks,
        lambda: {"marks.tsv": b"Sentence" + b"\tx" * 10**5 + b"\na" + b"\t1" * 10**5},
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_work_is_bounded_before_it_begins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, files = LARGE[name]
    monkeypatch.setattr(hostile, "SECONDS", 2.0)  # of processor time, with 512 MiB over the file
    assert outcome(Reader(strategies.nothing(), read), files()) == "refused"


def test_equal_labels_of_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must differ"):
        validate({"label_names": ["a", "a"]}, Companion)
