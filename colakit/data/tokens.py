"""From sentences to token numbers: the tokenizer, ragged token arrays, and their cache on disk.

Shapes: N sentences, L tokens in all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from colakit.errors import ColakitError, first_line
from colakit.utils.array_cache import ArrayCache

INFERENCE_BATCH = 256  # sentences; a student is sooner done than with fewer, or with more
MAX_CHARACTERS = 2**18  # of a sentence that is cut to some tokens anyway


@dataclass(frozen=True)
class Tokens:
    """Token numbers of N sentences, one after another.

    Attributes:
        ids: (L,) int32.
        offsets: (N + 1,) int64; sentence i is `ids[offsets[i]:offsets[i + 1]]`.
        num_truncated: sentences that were cut to the longest allowed length.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_truncated: int = 0

    @classmethod
    def pack(cls, rows: Sequence[Sequence[int] | NDArray[np.int32]], num_truncated: int = 0) -> Tokens:
        """Return the sentences whose token numbers are `rows`."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids, offsets, num_truncated)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence, (N,)."""
        return np.diff(self.offsets)

    def part(self, start: int, stop: int) -> Tokens:
        """Return sentences `start` to `stop`, the latter left out."""
        offsets = self.offsets[start : stop + 1]
        return Tokens(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])

    def sentence(self, i: int) -> NDArray[np.int32]:
        """Return the tokens of sentence `i`."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def padded(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (input_ids, attention_mask), both (B, T), of the B sentences at `index`."""
        lengths = self.lengths[index]
        position = np.arange(lengths.max())[None, :]
        real = position < lengths[:, None]
        source = np.where(real, self.offsets[index][:, None] + position, 0)
        return np.where(real, self.ids[source], 0).astype(np.int64), real.astype(np.int64)


class SentenceTokenizer:
    """A byte-level BPE tokenizer with the choice of boundary tokens that a classifier was trained with.

    Args:
        backend: the Rust tokenizer.
        end_of_text_id: GPT-2's one special token, which also stands for an empty sentence.
        prefix, suffix: whether `end_of_text_id` is put before and after each sentence.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        end_of_text_id: int,
        *,
        prefix: bool = False,
        suffix: bool = False,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.end_of_text_id = end_of_text_id
        self.prefix = prefix
        self.suffix = suffix

    @classmethod
    def from_folder(cls, folder: Path, *, prefix: bool = False, suffix: bool = False) -> SentenceTokenizer:
        """Load the tokenizer of a base model through transformers, whatever files it is kept in.

        Raises:
            ColakitError: if the folder holds none.
        """
        from transformers import AutoTokenizer

        try:
            fast = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
            backend = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ColakitError(
                f"{folder}: its tokenizer cannot be read ({first_line(error)})",
                hint="The folder needs tokenizer.json, or vocab.json and merges.txt.",
            ) from error
        if backend.get_vocab_size(with_added_tokens=False) == 0:  # transformers makes one up from config.json
            raise ColakitError(
                f"{folder}: its tokenizer cannot be read (no vocabulary)",
                hint="The folder needs tokenizer.json, or vocab.json and merges.txt.",
            )
        if fast.eos_token_id is None:
            raise ColakitError(
                f"{folder}: the tokenizer names no end-of-text token", hint="Set eos_token in it."
            )
        return cls(backend, int(fast.eos_token_id), prefix=prefix, suffix=suffix)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SentenceTokenizer:
        """Rebuild what `to_dict` described, with no other file.

        Raises:
            ValueError: if its numbers and marks are of other kinds.
            Exception: what the Rust tokenizer says of text that describes none.
        """
        end_of_text_id, prefix, suffix = state["end_of_text_id"], state["prefix"], state["suffix"]
        backend = tokenizers.Tokenizer.from_str(state["json"])
        if type(end_of_text_id) is not int or not 0 <= end_of_text_id < backend.get_vocab_size():
            raise ValueError("end_of_text_id must be a token of the vocabulary")
        if not (isinstance(prefix, bool) and isinstance(suffix, bool)):
            raise ValueError("prefix and suffix must be true or false")
        return cls(backend, end_of_text_id, prefix=prefix, suffix=suffix)

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain data."""
        return {
            "json": self.backend.to_str(),
            "end_of_text_id": self.end_of_text_id,
            "prefix": self.prefix,
            "suffix": self.suffix,
        }

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self.backend.get_vocab_size()

    def vocabulary(self) -> str:
        """Return a SHA-256 over the vocabulary and rules alone."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def fingerprint(self) -> str:
        """Return a SHA-256 over vocabulary, rules and boundary tokens."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def encode(self, sentences: Sequence[str], max_tokens: int | None = None) -> Tokens:
        """Return the tokens of `sentences`.

        Args:
            max_tokens: longest sequence kept, boundary tokens included; a longer sentence loses its last
                tokens, never a boundary token, and is counted in `num_truncated`. Of a sentence beyond
                `MAX_CHARACTERS` no more than these are looked at.
        """
        before = [self.end_of_text_id] if self.prefix else []
        after = [self.end_of_text_id] if self.suffix else []
        room = None if max_tokens is None else max(0, max_tokens - len(before) - len(after))
        rows: list[list[int]] = []
        num_truncated = 0
        texts = list(sentences)
        if room is not None:  # before all of a very long one is encoded
            texts = [text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] for text in texts]
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        for sentence, encoding in zip(sentences, encodings, strict=True):
            ids = encoding.ids
            if room is not None and (len(ids) > room or len(sentence) > MAX_CHARACTERS):
                ids, num_truncated = ids[:room], num_truncated + 1
            rows.append([*before, *ids, *after] or [self.end_of_text_id])
        return Tokens.pack(rows, num_truncated)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def plan_inference(
    lengths: NDArray[np.int64], batch_size: int, enough: int | None = None
) -> list[NDArray[np.int64]]:
    """Return batches of sentence numbers in order of length, for evaluation.

    Args:
        batch_size: sentences in a batch, at most.
        enough: tokens, padding included, from which a batch ends rather than be padded for a longer sentence;
            with four times as many it ends anyway.
    """
    order = np.argsort(lengths, kind="stable")
    if enough is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ordered = lengths[order].tolist()
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        size, longest = end - start, ordered[end - 1]
        ends = size == batch_size or end == len(order) or size * longest >= 4 * enough
        if ends or (size * longest >= enough and ordered[end] > longest):
            batches.append(order[start:end])
            start = end
    return batches


def encode_cached(
    tokenizer: SentenceTokenizer, sentences: Sequence[str], max_tokens: int | None, cache: ArrayCache | None
) -> Tokens:
    """Return `tokenizer.encode(sentences, max_tokens)`, from the cache if the same was encoded before."""
    if cache is None:
        return tokenizer.encode(sentences, max_tokens)
    text = hashlib.sha256(json.dumps(list(sentences)).encode()).hexdigest()
    key = {"tokenizer": tokenizer.fingerprint(), "sentences": text, "max_tokens": max_tokens}

    def compute() -> dict[str, NDArray[Any]]:
        tokens = tokenizer.encode(sentences, max_tokens)
        return {"ids": tokens.ids, "offsets": tokens.offsets, "num_truncated": np.array(tokens.num_truncated)}

    arrays = cache.get("tokens", key, compute, check=_check_tokens)
    return Tokens(arrays["ids"], arrays["offsets"], int(arrays["num_truncated"]))


def _check_tokens(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise `ValueError` or `KeyError` unless these are arrays of tokens."""
    ids, offsets, num_truncated = arrays["ids"], arrays["offsets"], arrays["num_truncated"]
    kinds = (ids.dtype, offsets.dtype, num_truncated.dtype, ids.ndim, offsets.ndim, num_truncated.ndim)
    if kinds != (np.int32, np.int64, np.int64, 1, 1, 0):
        raise ValueError("other arrays")
    if not (len(offsets) and offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()):
        raise ValueError("offsets that do not fit")
