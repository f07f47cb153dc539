"""Tokenizers: loading, training, saving, and encoding with a cache on disk."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from colakit.data.gguf_tokenizer import read_gguf_tokenizer
from colakit.data.tokenizer_files import (
    VOCABULARY,
    SpecialTokens,
    TokenizerFile,
    TokenizerState,
    VocabularyFile,
    check_files,
    pairs_of,
    read_merges,
    read_special_tokens,
)
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError
from colakit.utils.array_cache import ArrayCache
from colakit.utils.documents import library_errors, parse_document, read_document, read_text
from colakit.utils.files import replacing, write_json

END_OF_TEXT = "<|endoftext|>"
HINT = "The folder needs tokenizer.json, or vocab.json and merges.txt."
MAX_CHARACTERS = 2**18  # read of a sentence that is truncated to `max_tokens`
SEPARATED = (END_OF_TEXT, "<|im_end|>")
"""End-of-text tokens of models whose texts are separated by `<|endoftext|>` if their vocabulary has it."""


class SentenceTokenizer:
    """A tokenizer with optional boundary tokens.

    Args:
        backend: the Rust tokenizer.
        end_of_text_id: token between texts; also encodes an empty sentence.
        prefix, suffix: whether to add `start_id` before and `end_of_text_id` after each sentence.
        start_id: token before a text; None means `end_of_text_id`, GPT-2's one special token.
        template: whether to add the boundary tokens that the backend's own template adds, as transformers
            does; then `prefix` and `suffix` must be False.
    """

    def __init__(
        self,
        backend: Tokenizer,
        end_of_text_id: int,
        *,
        prefix: bool = False,
        suffix: bool = False,
        start_id: int | None = None,
        template: bool = False,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.end_of_text_id = end_of_text_id
        self.start_id = end_of_text_id if start_id is None else start_id
        self.prefix = prefix
        self.suffix = suffix
        self.template = template
        self.num_own = backend.num_special_tokens_to_add(False) if template else 0

    @classmethod
    def from_base(
        cls,
        path: Path,
        *,
        start: str | None = None,
        prefix: bool = False,
        suffix: bool = False,
        template: bool = False,
    ) -> SentenceTokenizer:
        """Load the tokenizer of a base, a folder or a GGUF file, as transformers does.

        Texts are separated by `<|endoftext|>` if it or ChatML's `<|im_end|>` is the EOS token and the
        vocabulary has it. Otherwise they start with the BOS token and end with the EOS token. Chat models
        name tokens of their dialogues, which suit single sentences less (docs/bases.md).

        Args:
            start: replaces the token before a text; it must be one token.

        Raises:
            ColakitError: if there is no valid tokenizer, or one that may take exponential time, or `start`
                is not one token.
        """
        if path.suffix == ".gguf":
            backend, start_id, end_id = read_gguf_tokenizer(path)
        else:
            backend, facts = _from_folder(path)
            start_id = None if facts.bos_token is None else backend.token_to_id(facts.bos_token)
            end_id = backend.token_to_id(facts.eos_token)
            start = start or facts.sentence_start
            if end_id is None:
                raise ColakitError(
                    f"{path}: the end-of-text token {facts.eos_token!r} is not in the vocabulary",
                    hint="Set eos_token in tokenizer_config.json.",
                )
        separator = backend.token_to_id(END_OF_TEXT)
        if separator is not None and (end_id is None or backend.id_to_token(end_id) in SEPARATED):
            start_id = end_id = separator
        if end_id is None:
            raise ColakitError(f"{path}: names no end-of-text token", hint="Choose another base.")
        tokenizer = cls(backend, end_id, prefix=prefix, suffix=suffix, start_id=start_id, template=template)
        return tokenizer.with_start(start)

    @classmethod
    def from_state(cls, state: TokenizerState) -> SentenceTokenizer:
        """Return the tokenizer that `to_dict` described.

        Raises:
            ColakitError: if it is not valid.
        """
        backend = _backend_of(state.json_, "tokenizer")
        with library_errors("tokenizer"):
            if None in map(backend.id_to_token, (state.start_id, state.end_of_text_id)):
                raise ValueError("start_id and end_of_text_id must be tokens of the vocabulary")
        return cls(backend, **state.model_dump(exclude={"json_"}))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SentenceTokenizer:
        """Return the tokenizer that `to_dict` described."""
        return cls.from_state(TokenizerState(**state))

    @classmethod
    def from_exported(cls, folder: Path) -> SentenceTokenizer:
        """Load the tokenizer of an exported folder, whose template adds the boundary tokens.

        Raises:
            ColakitError: if it is missing or not valid.
        """
        path, facts = folder / "tokenizer.json", read_special_tokens(folder)
        backend = _backend_of(read_text(path, VOCABULARY.bytes), path)
        end_id = backend.token_to_id(facts.eos_token)
        if end_id is None:
            raise ColakitError(f"{path}: the end-of-text token {facts.eos_token!r} is not in it")
        return cls(backend, end_id, template=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer as plain data."""
        return {
            "json": self.backend.to_str(),
            "end_of_text_id": self.end_of_text_id,
            "start_id": self.start_id,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "template": self.template,
        }

    def with_boundaries(self, *, prefix: bool = False, suffix: bool = False) -> SentenceTokenizer:
        """Return the tokenizer with or without boundary tokens."""
        return self._with(prefix=prefix, suffix=suffix, template=False)

    @property
    def start_token(self) -> str:
        """Text of the token before a sentence."""
        return self.decode([self.start_id], special=True)

    def with_start(self, token: str | None) -> SentenceTokenizer:
        """Return the tokenizer with another token before a sentence; None changes nothing.

        Raises:
            ColakitError: if `token` is not one token.
        """
        if token is None:
            return self
        (ids,) = self.encode_plain([token])
        if len(ids) != 1:
            raise ColakitError(
                f"start_token: {token!r} is {len(ids)} tokens of this base; it must be one",
                hint="Name a special token of the base, such as its bos_token, or a newline.",
            )
        return self._with(start_id=ids[0])

    def _with(self, **changes: Any) -> SentenceTokenizer:
        names = ("end_of_text_id", "start_id", "prefix", "suffix", "template")
        return SentenceTokenizer(self.backend, **{**{name: getattr(self, name) for name in names}, **changes})

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids from 0 to the largest one of the vocabulary and of the template."""
        own = self.backend.encode("").ids if self.template else []
        return max([*self.backend.get_vocab().values(), *own]) + 1

    def vocabulary(self) -> str:
        """Return a SHA-256 of vocabulary and merges, without boundary tokens."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def fingerprint(self) -> str:
        """Return a SHA-256 of vocabulary, merges and boundary tokens."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def encode(self, sentences: Sequence[str], max_tokens: int | None = None) -> Tokens:
        """Return the tokens of `sentences`.

        Args:
            max_tokens: maximum length, boundary tokens included. Longer sentences lose their last tokens (but
                no boundary token) and count in `num_truncated`; only `MAX_CHARACTERS` of one are read.
        """
        before = [self.start_id] if self.prefix else []
        after = [self.end_of_text_id] if self.suffix else []
        room = None if max_tokens is None else max(0, max_tokens - len(before) - len(after) - self.num_own)
        rows: list[list[int]] = []
        num_truncated = 0
        texts = [text if room is None else text[:MAX_CHARACTERS] for text in sentences]
        with library_errors("tokenizer"):
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            for sentence, encoding in zip(sentences, encodings, strict=True):
                if room is not None and (len(encoding) > room or len(sentence) > MAX_CHARACTERS):
                    encoding.truncate(room)
                    num_truncated += 1
                ids = (self.backend.post_process(encoding) if self.template else encoding).ids
                rows.append([*before, *ids, *after] or [self.end_of_text_id])
        return Tokens.pack(rows, num_truncated)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without boundary tokens."""
        with library_errors("tokenizer"):
            return [each.ids for each in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text of `ids`, without special tokens unless `special`."""
        with library_errors("tokenizer"):
            return self.backend.decode(list(ids), skip_special_tokens=not special)


def _backend_of(text: str, where: object) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json."""
    parse_document(text, TokenizerFile, str(where), VOCABULARY)
    with library_errors(where):
        return Tokenizer.from_str(text)


def _from_folder(folder: Path) -> tuple[Tokenizer, SpecialTokens]:
    """Return the tokenizer of a folder and its special tokens; GPT-2's without importing transformers."""
    facts, path = read_special_tokens(folder), folder / "tokenizer.json"
    file = read_document(path, TokenizerFile, VOCABULARY) if path.is_file() else None
    if not facts.is_gpt2 or (file is not None and file.has_template):
        return _read_with_transformers(folder, facts)
    if file is not None and file.model.type != "BPE":
        return _backend_of(path.read_text(encoding="utf-8"), path), facts
    return _gpt2_tokenizer(folder, file, facts), facts


def _read_with_transformers(folder: Path, facts: SpecialTokens) -> tuple[Tokenizer, SpecialTokens]:
    check_files(folder)
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()  # its warnings repeat what the files say
    with library_errors(folder, hint=HINT):
        fast = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
        named = {"bos_token": fast.bos_token, "eos_token": fast.eos_token or facts.eos_token}
        return _backend_of(fast.backend_tokenizer.to_str(), folder), facts.model_copy(update=named)


def _gpt2_tokenizer(folder: Path, file: TokenizerFile | None, facts: SpecialTokens) -> Tokenizer:
    """Return a byte-level BPE tokenizer, equal to that of transformers."""
    if file is not None:
        path, added = folder / "tokenizer.json", file.added_tokens
        vocab, merges = file.model.vocab, file.model.merges
    else:
        path, added = folder / "vocab.json", []
        vocab = read_document(path, VocabularyFile, VOCABULARY, hint=HINT).root
        merges = read_merges(folder / "merges.txt")
    with library_errors(path, hint=HINT):
        model = models.BPE(
            vocab, pairs_of(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
        )
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=facts.add_prefix_space)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.TemplateProcessing(
            single=["$A:0"], pair=["$A:0", "$B:1"], special_tokens=[]
        )
        backend.add_tokens([entry.token() for entry in added])
        is_added = any(entry.content == facts.eos_token for entry in added)
        if not is_added and backend.token_to_id(facts.eos_token) is not None:
            backend.add_special_tokens([AddedToken(facts.eos_token, normalized=False, special=True)])
    return backend


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentenceTokenizer:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2).

    Args:
        vocab_size: number of tokens, including the 256 bytes and end-of-text.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    end_of_text_id = backend.token_to_id(END_OF_TEXT)
    assert end_of_text_id is not None, "a special token of the trainer"
    return SentenceTokenizer(backend, end_of_text_id)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a tokenizer of its own."""
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def save_tokenizer(
    tokenizer: SentenceTokenizer,
    folder: Path,
    *,
    max_tokens: int | None,
    boundaries: bool = False,
    pad_id: int | None = None,
) -> None:
    """Write tokenizer.json and tokenizer_config.json, for transformers' `AutoTokenizer`.

    Args:
        max_tokens: of a text; None sets no limit.
        boundaries: whether transformers adds the boundary tokens, too, by the file's template.
        pad_id: token that pads texts on the right; None names none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    has_template = tokenizer.template
    if boundaries and (tokenizer.prefix or tokenizer.suffix):
        backend.post_processor, has_template = _boundary_template(tokenizer), True
    with replacing(folder / "tokenizer.json") as temporary:
        backend.save(str(temporary))
    start, end = map(backend.id_to_token, (tokenizer.start_id, tokenizer.end_of_text_id))
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    is_gpt2 = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and not has_template
    kind = "GPT2Tokenizer" if is_gpt2 and pad_id is None else "PreTrainedTokenizerFast"
    length = {} if max_tokens is None else {"model_max_length": max_tokens}
    settings = {"tokenizer_class": kind, **length, **special}
    if pad_id is not None:
        settings |= {"pad_token": backend.id_to_token(pad_id), "padding_side": "right"}
    if tokenizer.start_id != tokenizer.end_of_text_id:
        settings["sentence_start"] = tokenizer.start_token
    write_json(folder / "tokenizer_config.json", settings)


def _boundary_template(tokenizer: SentenceTokenizer) -> processors.PostProcessor:
    start, end = (tokenizer.backend.id_to_token(i) for i in (tokenizer.start_id, tokenizer.end_of_text_id))
    assert start is not None
    assert end is not None
    ids = {start: tokenizer.start_id, end: tokenizer.end_of_text_id}
    parts = [*([start] if tokenizer.prefix else []), "$A", *([end] if tokenizer.suffix else [])]
    return processors.TemplateProcessing(single=parts, special_tokens=list(ids.items()))


def encode_cached(
    tokenizer: SentenceTokenizer, sentences: Sequence[str], max_tokens: int | None, cache: ArrayCache | None
) -> Tokens:
    """Return `tokenizer.encode(sentences, max_tokens)`, cached on disk."""
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
    """Raise `ValueError` or `KeyError` unless the cached arrays are valid tokens."""
    ids, offsets, num_truncated = arrays["ids"], arrays["offsets"], arrays["num_truncated"]
    kinds = (ids.dtype, offsets.dtype, num_truncated.dtype, ids.ndim, offsets.ndim, num_truncated.ndim)
    if kinds != (np.int32, np.int64, np.int64, 1, 1, 0):
        raise ValueError("wrong dtype or shape")
    if not (len(offsets) and offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()):
        raise ValueError("offsets do not match ids")
