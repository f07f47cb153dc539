"""The header of a safetensors file, read before the library allocates anything. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from colakit.utils.documents import BOUNDS, Document, DocumentError, parse_document, read_bounded

Dtype = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]


class TensorEntry(Document):
    """A tensor in the header."""

    dtype: Dtype
    shape: Annotated[list[NonNegativeInt], Field(max_length=8)]


class SafetensorsHeader(Document, extra="allow"):
    """The header: name -> tensor."""

    __pydantic_extra__: dict[str, TensorEntry]
    metadata: dict[str, str] = Field({}, alias="__metadata__")


def read_header(path: Path, *, hint: str | None = None) -> SafetensorsHeader:
    """Return the header of a safetensors file.

    Raises:
        DocumentError: if it cannot be read, exceeds a bound or is not valid.
    """
    raw = read_bounded(path, BOUNDS.bytes + 8, whole=False, hint=hint)
    length = int.from_bytes(raw[:8], "little")
    if length > len(raw) - 8:
        raise DocumentError(
            f"{path}: its header has {length:,} bytes; the file and {BOUNDS.bytes:,} bytes are the limits",
            hint=hint,
        )
    return parse_document(raw[8 : 8 + length], SafetensorsHeader, f"{path}, header", hint=hint)
