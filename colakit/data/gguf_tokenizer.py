"""Tokenizers in GGUF files, the format of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from colakit.data.gguf import EMBEDDING, GgufTensor, open_gguf
from colakit.data.tokenizer_files import MAX_ADDED, TokenText, pairs_of
from colakit.utils.documents import Document, library_errors, validate

KEY = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4  # token types
MAX_MERGES = 8  # for each token; Llama 3 has two
WORDS = (  # of Llama 3; Qwen2's differ in the number of digits
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
"""Supported values of `tokenizer.ggml.pre`, the way that texts are cut into pieces before BPE."""


class GgufTokenizer(Document):
    """The fields of `tokenizer.ggml` that colakit reads."""

    tokens: Annotated[list[TokenText], Field(min_length=1, fail_fast=True)]
    token_type: Annotated[list[int], Field(fail_fast=True)]
    merges: Annotated[list[str], Field(fail_fast=True)]
    bos_token_id: Annotated[int, Field(ge=0)] | None = None
    eos_token_id: Annotated[int, Field(ge=0)] | None = None


def read_gguf_tokenizer(path: Path) -> tuple[Tokenizer, int | None, int | None]:
    """Return the byte-level BPE tokenizer of a GGUF file, and its BOS and EOS tokens.

    transformers' own conversion leaves out how `tokenizer.ggml.pre` splits texts, which changes some tokens
    around digits and spaces.

    Raises:
        ColakitError: if it is broken or not supported.
    """
    file = open_gguf(path)
    facts = file.facts
    with library_errors(f"{path}: its tokenizer", hint="Choose another base."):
        kind, pieces = facts.get(f"{KEY}model"), facts.get(f"{KEY}pre")
        if kind != "gpt2" or pieces not in PIECES:
            got = f"{str(kind)[:40]}, {str(pieces)[:40]}"
            raise ValueError(f"it is {got}; byte-level BPE of {', '.join(PIECES)} is supported")
        given = validate({key.removeprefix(KEY): value for key, value in facts.items()}, GgufTokenizer)
        _check_tokens(given, file.tensors.get(EMBEDDING))
        return _tokenizer(given, pieces), given.bos_token_id, given.eos_token_id


def _check_tokens(given: GgufTokenizer, embedding: GgufTensor | None) -> None:
    """Raise `ValueError` unless the tokens differ, and types, merges, ids and embeddings belong to them."""
    count, num_added = len(given.tokens), sum(map(given.token_type.count, (CONTROL, USER_DEFINED)))
    if embedding is not None and count > embedding.shape[0]:
        raise ValueError(f"it has {count:,} tokens, but the model {embedding.shape[0]:,} embeddings")
    if len(given.merges) > MAX_MERGES * count:
        raise ValueError(f"it has {len(given.merges):,} merges of {count:,} tokens")
    if len(given.token_type) != count or len(set(given.tokens)) != count:
        raise ValueError(f"its {count:,} tokens must differ, and have a type each")
    if num_added > MAX_ADDED:
        raise ValueError(f"{num_added:,} tokens are special; {MAX_ADDED:,} are allowed")
    if any(i is not None and i >= count for i in (given.bos_token_id, given.eos_token_id)):
        raise ValueError("bos_token_id and eos_token_id must be tokens of the vocabulary")


def _tokenizer(given: GgufTokenizer, pieces: str) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(given.tokens)}
    merges = pairs_of(given.merges)
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pieces == "llama-bpe"))
    backend.decoder = decoders.ByteLevel()
    if pieces == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pieces)
    for token, kind in zip(given.tokens, given.token_type, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
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
