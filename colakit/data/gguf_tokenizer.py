"""Tokenizers in GGUF files, the format of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from colakit.utils.documents import library_errors

if TYPE_CHECKING:
    from gguf import ReaderTensor

KEY = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4  # token types
WORDS = (  # of Llama 3; Qwen2's differ in the number of digits
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
"""Supported values of `tokenizer.ggml.pre`, the way that texts are cut into pieces before BPE."""


@dataclass(frozen=True)
class GgufFile:
    """Metadata as plain data, and tensors by name, which stay in the file until they are dequantised."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]


def open_gguf(path: Path) -> GgufFile:
    """Return the content of a GGUF file; the last one is kept, because parsing takes seconds.

    Raises:
        ColakitError: if it cannot be read, or is not GGUF.
    """
    with library_errors(path, hint="Download the file again."):
        facts = path.stat()
        return _parse(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1)
def _parse(path: Path, modified: int, size: int) -> GgufFile:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return GgufFile(facts, {tensor.name: tensor for tensor in reader.tensors})


def read_gguf_tokenizer(path: Path) -> tuple[Tokenizer, int | None, int | None]:
    """Return the byte-level BPE tokenizer of a GGUF file, and its BOS and EOS tokens.

    transformers' own conversion leaves out how `tokenizer.ggml.pre` splits texts, which changes some tokens
    around digits and spaces.

    Raises:
        ColakitError: if it is broken or not supported.
    """
    facts = open_gguf(path).facts
    with library_errors(f"{path}: its tokenizer", hint="Choose another base."):
        backend = _tokenizer(facts)
        ids = [facts.get(f"{KEY}{name}_token_id") for name in ("bos", "eos")]
        if any(i is not None and backend.id_to_token(i) is None for i in ids):
            raise ValueError("bos_token_id and eos_token_id must be tokens of the vocabulary")
    return backend, ids[0], ids[1]


def _tokenizer(facts: Mapping[str, Any]) -> Tokenizer:
    kind, pieces = facts[f"{KEY}model"], facts.get(f"{KEY}pre")
    if kind != "gpt2" or pieces not in PIECES:
        raise ValueError(f"it is {kind}, {pieces}; byte-level BPE of {', '.join(PIECES)} is supported")
    tokens, types = facts[f"{KEY}tokens"], facts[f"{KEY}token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts[f"{KEY}merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pieces == "llama-bpe"))
    backend.decoder = decoders.ByteLevel()
    if pieces == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pieces)
    for number, kind in enumerate(types):
        if kind in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(tokens[number], special=kind == CONTROL, normalized=False)])
    return backend


def _pre_tokenizer(pieces: str) -> pre_tokenizers.PreTokenizer:
    if pieces == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pieces == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = Regex(WORDS.replace("DIGITS", "3" if pieces == "llama-bpe" else "1"))
    split = pre_tokenizers.Split(words, behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
