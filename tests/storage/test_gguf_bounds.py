"""GGUF files of others: each fault is named before any work that it would cause."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_gguf import KEY, document_of, valid_file, written

from colakit.data import gguf
from colakit.data.gguf import MAX_ITEMS
from colakit.data.tokenizer import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.storage.gpt2 import load_gpt

Document = dict[str, Any]
Change = Callable[[Document], object]


@pytest.fixture(scope="module")
def good() -> tuple[Document, bytes]:
    return document_of(valid_file())


def set_in(section: str, key: str, value: Any) -> Change:
    return lambda document: document[section].update({key: value})


def tensor(number: int, **fields: Any) -> Change:
    return lambda document: document["tensors"][number].update(fields)


HEADER: dict[str, tuple[Change, str]] = {
    "magic": (set_in("counts", "magic", "GGML"), "magic: must be 'GGUF'"),
    "version": (set_in("counts", "version", 1), "version: must be 2 or 3"),
    "number of tensors": (set_in("counts", "tensors", 2**40), "tensors: must be at most 4096"),
    "number of entries": (set_in("counts", "entries", 2**63), "entries: must be at most 1024"),
    "length of a text": (
        set_in("general", "x", "\ue000digits"),
        "a text has 18,446,.* bytes",
    ),
    "length of a name": (set_in("general", "x" * 300, 1), "a text has 308 bytes; 256 are allowed"),
    "length of an array": (set_in("general", "x", "\ue000exponent"), "its arrays have 2,305,8.* items"),
    "items of an array": (set_in("general", "x", [True] * MAX_ITEMS), "its arrays have 1,048,850 items"),
    "nested arrays": (set_in("general", "x", "\ue000deep"), "values of type 9 are not supported"),
    "type of a value": (set_in("general", "x", None), "values of type 13 are not supported"),
    "not UTF-8": (set_in("general", "x", "\ue000bytes"), "codec can't decode"),
    "NUL": (set_in("general", "x", "\ue000escape"), "contains NUL characters"),
    "alignment": (set_in("general", "alignment", 0), "general.alignment is 0"),
    "alignment of another type": (set_in("general", "alignment", [32]), r"general.alignment is \[32\]"),
    "architecture": (set_in("general", "architecture", ["llama"]), "architecture is"),
    "number of dimensions": (tensor(0, shape=[1] * 2**20), "the header ends|at most 4 items"),
    "size of a dimension": (tensor(0, shape=[2**62, 2**62]), "shape.0: must be at most"),
    "empty dimension": (tensor(0, shape=[0, 32]), "shape.0: must be at least 1"),
    "rows that are no blocks": (tensor(0, kind=8, shape=[4, 33]), "rows of 33 values are no blocks of 32"),
    "type of a tensor": (tensor(0, kind=99), "99 is not a valid GGMLQuantizationType"),
    "offset of a tensor": (tensor(0, offset=2**40), "ends at byte .* of a file of"),
    "shared data": (tensor(1, offset=0), "shares data with another tensor"),
    "size of a tensor": (tensor(-1, shape=[2**20, 32], kind=0), "of a file of|shares data"),
    "two tensors of a name": (tensor(0, name="output_norm.weight"), "'output_norm.weight' occurs twice"),
    "no embedding": (tensor(0, name="other"), "tensor 'token_embd.weight' is missing"),
    "a name without a dot": (tensor(1, name="other"), "other is not in the model"),
    "a name without a layer": (tensor(1, name="blk.weight"), "blk.weight is not in the model"),
    "blocks": (set_in("model", "block_count", 10**6), "block_count: must be at most 256"),
    "width": (set_in("model", "embedding_length", 10**9), "embedding_length: must be at most"),
    "width of another type": (set_in("model", "embedding_length", "x"), "embedding_length: must be a whole"),
    "heads in a list": (set_in("model", "attention.head_count", [2]), "head_count: must be a whole number"),
    "no head": (set_in("model", "attention.head_count", 0), "head_count: must be at least 1"),
    "epsilon": (set_in("model", "attention.layer_norm_rms_epsilon", float("nan")), "norm_epsilon"),
    "rotary base": (set_in("model", "rope.freq_base", float("inf")), "rope_theta"),
    "rotary scaling": (set_in("model", "rope.scaling.type", "yarn"), "must be 'none' or 'linear'"),
}
NUM_TOKENS = 274
TOKENIZER: dict[str, tuple[Change, str]] = {
    "kind in a list": (set_in("tokenizer", "model", ["gpt2"]), "byte-level BPE of .* is supported"),
    "tokens beyond the model": (
        set_in("tokenizer", "tokens", [f"{i}" for i in range(10**5)]),
        "it has 100,000 tokens, but the model 274 embeddings",
    ),
    "merges": (set_in("tokenizer", "merges", ["t h"] * 10**5), "it has 100,000 merges of 274 tokens"),
    "merges of unknown tokens": (set_in("tokenizer", "merges", ["qq zz"]), "out of vocabulary"),
    "merges that are no pairs": (set_in("tokenizer", "merges", ["the"]), "must be pairs of tokens"),
    "tokens of another type": (set_in("tokenizer", "tokens", [1] * NUM_TOKENS), "tokens.0: must be text"),
    "equal tokens": (set_in("tokenizer", "tokens", ["a"] * NUM_TOKENS), "its 274 tokens must differ"),
    "a long token": (set_in("tokenizer", "tokens", ["a" * 2000]), "tokens.0: must have at most 1024"),
    "too few types": (set_in("tokenizer", "token_type", [1]), "have a type each"),
    "beginning beyond the vocabulary": (set_in("tokenizer", "bos_token_id", 10**6), "must be tokens of the"),
    "end in a list": (set_in("tokenizer", "eos_token_id", [1]), "eos_token_id: must be a whole number"),
    "negative end": (set_in("tokenizer", "eos_token_id", -1), "eos_token_id: must be at least 0"),
}


def file_of(change: Change, good: tuple[Document, bytes], folder: Path) -> Path:
    document, data = copy.deepcopy(good[0]), good[1]
    change(document)
    path = folder / "model.gguf"
    path.write_bytes(written(document, data, good[0]))
    gguf._parse.cache_clear()
    return path


@pytest.mark.parametrize("fault", HEADER)
def test_a_fault_of_a_header_is_named(fault: str, good: tuple[Document, bytes], tmp_path: Path) -> None:
    change, message = HEADER[fault]
    with pytest.raises(ColakitError, match=f"model.gguf: .*{message}"):
        load_gpt(file_of(change, good, tmp_path))


@pytest.mark.parametrize("fault", TOKENIZER)
def test_a_fault_of_a_tokenizer_is_named(fault: str, good: tuple[Document, bytes], tmp_path: Path) -> None:
    change, message = TOKENIZER[fault]
    with pytest.raises(ColakitError, match=f"model.gguf: its tokenizer: .*{message}"):
        SentenceTokenizer.from_base(file_of(change, good, tmp_path))


def test_special_tokens_are_limited(good: tuple[Document, bytes], tmp_path: Path) -> None:
    def change(document: Document) -> None:
        (embedding,) = (each for each in document["tensors"] if each["name"] == gguf.EMBEDDING)
        document["tensors"] = [{**embedding, "kind": 24, "shape": [2000, 1]}]  # bytes
        document["tokenizer"] |= {"tokens": [f"{i}" for i in range(2000)], "token_type": [3] * 2000}

    with pytest.raises(ColakitError, match="2,000 tokens are special; 1,024 are allowed"):
        SentenceTokenizer.from_base(file_of(change, good, tmp_path))


def test_a_file_without_bytes_for_its_items_is_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    counts = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    name = struct.pack("<Q", len(KEY)) + KEY.encode()
    path.write_bytes(counts + name + struct.pack("<I", 9) + struct.pack("<IQ", 8, MAX_ITEMS))
    with pytest.raises(ColakitError, match="the header ends at byte"):
        gguf.open_gguf(path)


def test_a_valid_file_is_loaded(good: tuple[Document, bytes], tmp_path: Path) -> None:
    path = file_of(lambda document: None, good, tmp_path)
    assert load_gpt(path).config.vocab_size == NUM_TOKENS == SentenceTokenizer.from_base(path).vocab_size
