"""GGUF files, the format of llama.cpp: metadata, and where each tensor lies. Does not import torch.

    magic, version, counts | key, type, value … | name, shape, type, offset … | padding | data

The header is parsed here, within bounds: the package `gguf` makes several arrays of each value, and checks
no length. It dequantises the data of single tensors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from colakit.utils.documents import Document, check_text, library_errors, read_bounded, validate

MAX_HEADER = 2**25  # bytes; that of Llama 3 has 2**23
MAX_ITEMS = 2**20  # of all arrays; Llama 3's tokens, their types and merges are half as many
MAX_NAME = 2**8  # bytes
SCALARS = dict(enumerate("BbHhIif?")) | dict(zip((10, 11, 12), "Qqd", strict=True))  # type -> struct's
STRING, ARRAY, SHAPE = 8, 9, 10
EMBEDDING = "token_embd.weight"


class GgufCounts(Document):
    """The numbers before the metadata."""

    magic: Literal["GGUF"]
    version: Literal[2, 3]
    tensors: Annotated[int, Field(le=2**12)]
    entries: Annotated[int, Field(le=2**10)]


class GgufTensor(Document):
    """A tensor's entry in the header.

    Attributes:
        shape: the row's length last, as in numpy.
        kind: a `GGMLQuantizationType`.
        offset: from the beginning of the data.
    """

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(min_length=1, max_length=4)]
    kind: int
    offset: int

    @cached_property
    def num_bytes(self) -> int:
        """Size of its data."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        values, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        if self.shape[-1] % values:
            raise ValueError(f"rows of {self.shape[-1]} values are no blocks of {values}")
        return math.prod(self.shape) // values * size

    @model_validator(mode="after")
    def _has_size(self) -> Self:
        assert self.num_bytes
        return self


@dataclass(frozen=True)
class GgufFile:
    """A parsed header.

    Attributes:
        facts: metadata as plain data.
        tensors: by name; their data stay in the file.
        data_start: byte at which the data begin.
    """

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data_start: int

    def values(self, name: str) -> NDArray[np.float32]:
        """Return the values of a tensor in fp32.

        Raises:
            ColakitError: if its type cannot be dequantised.
        """
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        where = f"{self.path}: {name} of type {kind.name}"
        with library_errors(where, hint="Choose another quantisation."), np.errstate(all="ignore"):
            start = self.data_start + tensor.offset
            raw = np.fromfile(self.path, np.uint8, tensor.num_bytes, offset=start)
            values = dequantize(raw.reshape(*tensor.shape[:-1], -1), kind)
            return values.reshape(tensor.shape).astype(np.float32, copy=False)


def open_gguf(path: Path) -> GgufFile:
    """Return the content of a GGUF file; the last one is kept.

    Raises:
        ColakitError: if it cannot be read, is not GGUF, exceeds a bound, or lacks data of a tensor.
    """
    with library_errors(path, hint="Download the file again."):
        facts = path.stat()
        return _parse(path, facts.st_mtime_ns, facts.st_size)


class _Header:
    """Bytes of a header, read from the beginning."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.num_items = raw, 0, 0

    def take(self, size: int) -> bytes:
        if size > len(self.raw) - self.at:
            raise ValueError(f"the header ends at byte {len(self.raw):,}, within a value")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, max_bytes: int = MAX_HEADER) -> str:
        length = self.number(8)
        if length > max_bytes:
            raise ValueError(f"a text has {length:,} bytes; {max_bytes:,} are allowed")
        text = self.take(length).decode("utf-8")
        check_text(text)
        return text

    def value(self) -> Any:
        """Return the next value of the metadata, whose type precedes it."""
        kind = self.number(4)
        if kind != ARRAY:
            return self.items(kind, 1)[0]
        kind, count = self.number(4), self.number(8)
        self.num_items += count
        if self.num_items > MAX_ITEMS:
            raise ValueError(f"its arrays have {self.num_items:,} items; {MAX_ITEMS:,} are allowed")
        return self.items(kind, count)

    def items(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"values of type {kind} are not supported")
        form = f"<{count}{SCALARS[kind]}"
        return list(struct.unpack(form, self.take(struct.calcsize(form))))


@lru_cache(maxsize=1)
def _parse(path: Path, modified: int, size: int) -> GgufFile:
    header = _Header(read_bounded(path, MAX_HEADER, whole=False))
    start = {"magic": header.take(4).decode("latin-1"), "version": header.number(4)}
    counts = validate({**start, "tensors": header.number(8), "entries": header.number(8)}, GgufCounts)
    facts: dict[str, Any] = {}
    for _ in range(counts.entries):
        key = header.text(MAX_NAME)
        if key in facts:
            raise ValueError(f"{key!r} occurs twice")
        facts[key] = header.value()
    tensors: dict[str, GgufTensor] = {}
    for _ in range(counts.tensors):
        name = header.text(MAX_NAME)
        if name in tensors:
            raise ValueError(f"tensor {name!r} occurs twice")
        shape = header.items(SHAPE, header.number(4))[::-1]
        entry = {"shape": shape, "kind": header.number(4), "offset": header.number(8)}
        try:
            tensors[name] = validate({"name": name, **entry}, GgufTensor)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
    alignment = facts.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**16:
        raise ValueError(f"general.alignment is {str(alignment)[:40]}; it must be a number from 1 to {2**16}")
    file = GgufFile(path, facts, tensors, math.ceil(header.at / alignment) * alignment)
    _require_data(file, size)
    return file


def _require_data(file: GgufFile, size: int) -> None:
    """Raise `ValueError` unless all tensors have data of their own in a file of `size` bytes."""
    end = file.data_start
    for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.offset):
        start = file.data_start + tensor.offset
        if start < end:
            raise ValueError(f"tensor {tensor.name!r} shares data with another tensor")
        end = start + tensor.num_bytes
        if end > size:
            raise ValueError(f"tensor {tensor.name!r} ends at byte {end:,} of a file of {size:,} bytes")
