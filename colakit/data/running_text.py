"""Running text for pre-training: documents from files, encoded as one token stream with sentence starts.

A line `<|endoftext|>` separates documents. Shapes: L tokens of a stream, S sentence starts, V vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.data.tokenizer import END_OF_TEXT, SentenceTokenizer
from colakit.errors import ColakitError
from colakit.utils.array_cache import ArrayCache
from colakit.utils.unpacking import DECODERS, open_unpacked

FORMAT = 2  # increase when sentence splitting changes, to invalidate cached streams
ENDINGS = (".txt", ".md", ".text", *DECODERS)  # files read from a folder
PIECES_AT_A_TIME = 20_000  # sentences per tokenizer call
ABBREVIATIONS = {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Rev", "Hon", "Capt", "Col", "Gen", "Lt", "No"}
MOST_BREAKS = 4  # maximum white-space tokens before a sentence
PARAGRAPH = re.compile(r"\n\s*\n\s*")
SENTENCE_END = re.compile(r"""(?<!\w)(\w*)[.!?]["'”’)\]]*(\s+)(?=["'“‘(\[]*([^\W\d_]))""")  # noqa: RUF001


def text_files(path: str | Path) -> list[Path]:
    """Return the file itself, or the text files of a folder (recursive, sorted by name).

    Raises:
        ColakitError: if there is no text file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in ENDINGS)
        if not files:
            raise ColakitError(f"{path}: no text found", hint=f"Files may end in {', '.join(ENDINGS)}.")
        return files
    if not path.is_file():
        raise ColakitError(f"{path}: file not found", hint="Name a text file or a folder of text files.")
    return [path]


def check_upsample(repeats: Mapping[str, int], text: Mapping[str, str]) -> None:
    """Raise `ColakitError` if `repeats` names a text that is not in `text`."""
    if unknown := sorted(set(repeats) - set(text)):
        raise ColakitError(
            f"pretrain.upsample: {', '.join(unknown)} is not among pretrain.text",
            hint=f"It is read: {', '.join(text)}.",
        )


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of one file (plain, gzip or xz), one in memory at a time.

    Raises:
        ColakitError: if the file cannot be read or is not UTF-8.
    """
    try:
        with open_unpacked(path) as packed:
            lines: list[str] = []
            file = io.TextIOWrapper(packed, encoding="utf-8-sig")
            for line in itertools.chain(file, [END_OF_TEXT]):
                if line.strip() != END_OF_TEXT:
                    lines.append(line)
                    continue
                document = "".join(lines).strip()
                lines.clear()
                if document:
                    yield document
    except UnicodeDecodeError as error:
        raise ColakitError(
            f"{path}: not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x})",
            hint="Convert it to UTF-8.",
        ) from error


def sentences(document: str) -> list[str]:
    """Split a document into sentences, each with its leading white space; paragraphs begin with one `\\n`.

    A sentence starts a paragraph, or follows `.`, `!` or `?` (but no initial or abbreviation) and begins with
    a letter that is not lower case.
    """
    pieces: list[str] = []
    for number, paragraph in enumerate(PARAGRAPH.split(document)):
        text = f"\n{paragraph}" if number else paragraph
        begin = 0
        for match in SENTENCE_END.finditer(text):
            word, following = match.group(1, 3)
            is_initial = len(word) == 1 and word.isupper() and word != "I"
            if not (following.islower() or word in ABBREVIATIONS or is_initial):
                pieces.append(text[begin : match.start(2)])
                begin = match.start(2)
        pieces.append(text[begin:])
    return pieces


def whole_sentences(documents: Iterable[str], lengths: range) -> Iterator[str]:
    """Yield sentences that start with a capital, end with `.?!` and contain no quotation mark.

    `lengths` are the allowed numbers of words.
    """
    for sentence in itertools.chain.from_iterable(map(sentences, documents)):
        words = sentence.split()
        text = " ".join(words)
        if len(words) in lengths and text[0].isupper() and text[-1] in ".?!" and '"' not in text:
            yield text


@dataclass(frozen=True)
class Vocabulary:
    """Per-token facts of a byte-level tokenizer.

    Attributes:
        num_bytes: (V,) int32, bytes of text; 0 for a special token.
        blank: (V,) bool, whether the token is white space only.
        bare: (V,) int32, the same token without its leading space, or -1 if the vocabulary has none.
    """

    num_bytes: NDArray[np.int32]
    blank: NDArray[np.bool_]
    bare: NDArray[np.int32]

    @classmethod
    def of(cls, tokenizer: SentenceTokenizer) -> Vocabulary:
        """Read the facts from a tokenizer, which spells each byte as one character and a space as Ġ."""
        index = tokenizer.backend.get_vocab(with_added_tokens=True)
        size = max(index.values()) + 1
        num_bytes = np.zeros(size, dtype=np.int32)
        blank = np.zeros(size, dtype=np.bool_)
        bare = np.arange(size, dtype=np.int32)
        for text, token in index.items():
            if token == tokenizer.end_of_text_id:
                continue
            num_bytes[token] = len(text)
            blank[token] = not text.strip("ĠĊĉč")
            if text.startswith("Ġ") and not blank[token]:
                bare[token] = index.get(text[1:], -1)
        return cls(num_bytes, blank, bare)


@dataclass(frozen=True)
class Stream:
    """Concatenated documents, each followed by the end-of-text token.

    Attributes:
        ids: (L,) unsigned integers.
        starts: (S,) int64, positions of sentences whose first token also exists without a leading space.
        documents: int64, start of each document, and L.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    documents: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the tokens and sentence starts."""
        digest = hashlib.sha256(self.ids.tobytes())
        digest.update(self.starts.tobytes())
        return digest.hexdigest()

    def take(self, parts: Sequence[tuple[int, int]]) -> Stream:
        """Concatenate the [start, end) ranges as a new stream."""
        lengths = np.array([end - start for start, end in parts], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = [
            self.starts[slice(*np.searchsorted(self.starts, part))] - part[0] + offset
            for part, offset in zip(parts, offsets, strict=False)
        ]
        ids = np.concatenate([self.ids[start:end] for start, end in parts])
        return Stream(ids, np.concatenate(starts), offsets)


def encode_text(files: Sequence[Path], tokenizer: SentenceTokenizer, cache: ArrayCache | None) -> Stream:
    """Return the stream of all documents in `files`, cached on disk.

    Raises:
        ColakitError: if a file cannot be read or all are empty.
    """
    documents = itertools.chain.from_iterable(map(read_documents, files))
    if cache is None:
        stream = _encode(documents, tokenizer)
    else:
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        key = {"format": FORMAT, "tokenizer": tokenizer.fingerprint(), "files": digests}
        stream = Stream(**cache.get("text", key, lambda: vars(_encode(documents, tokenizer))))
    if not len(stream.starts):
        raise ColakitError(f"{files[0]}: no text found", hint="Pre-training needs running text.")
    return stream


def _encode(documents: Iterable[str], tokenizer: SentenceTokenizer) -> Stream:
    facts = Vocabulary.of(tokenizer)
    dtype = np.uint16 if len(facts.bare) <= 2**16 else np.uint32
    pieces = ((piece, i == 0) for text in documents for i, piece in enumerate(sentences(text)))
    ids: list[NDArray[Any]] = []
    lengths: list[int] = []
    opening: list[bool] = []  # whether a piece is the first of its document
    while batch := list(itertools.islice(pieces, PIECES_AT_A_TIME)):
        rows = tokenizer.encode_plain([text for text, _ in batch])
        lengths += map(len, rows)
        opening += [first for _, first in batch]
        flat = itertools.chain.from_iterable(rows)
        ids.append(np.fromiter(flat, dtype=dtype, count=sum(map(len, rows))))
    if not ids:
        empty = np.zeros(0, dtype=np.int64)
        return Stream(empty.astype(dtype), empty, np.zeros(1, dtype=np.int64))
    return _with_ends(np.concatenate(ids), np.array(lengths), np.array(opening), tokenizer, facts)


def _with_ends(
    ids: NDArray[Any],
    lengths: NDArray[np.int64],
    opening: NDArray[np.bool_],
    tokenizer: SentenceTokenizer,
    facts: Vocabulary,
) -> Stream:
    """Insert the end-of-text token after each document, and compute the sentence starts."""
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    documents = begins[opening]
    ends = np.append(documents[1:], len(ids))
    ids = np.insert(ids, ends, tokenizer.end_of_text_id)
    begins = begins + np.cumsum(opening) - 1  # one end-of-text token per earlier document
    for _ in range(MOST_BREAKS):
        begins = begins + facts.blank[ids[begins]]
    usable = begins[(facts.bare[ids[begins]] >= 0) & ~facts.blank[ids[begins]]]
    documents = np.append(documents + np.arange(len(documents)), len(ids)).astype(np.int64)
    return Stream(ids, usable.astype(np.int64), documents)


def split_val(stream: Stream, share: float, seed: int) -> tuple[Stream, Stream]:
    """Return (train, val): val gets random whole documents until it has `share` of the tokens.

    Documents larger than that share stay in train. If no document fits, val is the end of the text.
    """
    wanted = share * len(stream)
    sizes = np.diff(stream.documents)
    chosen: list[int] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(len(sizes)):
        if total < wanted and sizes[i] <= wanted and len(chosen) < len(sizes) - 1:
            chosen.append(int(i))
            total += int(sizes[i])
    if not chosen:
        after = int(np.searchsorted(stream.starts, len(stream) - wanted))
        cut = int(stream.starts[min(after, len(stream.starts) - 1)])
        return stream.take([(0, cut)]), stream.take([(cut, len(stream))])
    in_val = set(chosen)
    ranges = list(itertools.pairwise(stream.documents.tolist()))
    kept = [part for i, part in enumerate(ranges) if i not in in_val]
    return stream.take(kept), stream.take([ranges[i] for i in sorted(in_val)])
