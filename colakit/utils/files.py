"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OUT_OF_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""RowErrors of a write that are not the path's: disk or quota full, file too large, a failing disk."""
CHUNK = 1 << 20  # bytes hashed at a time
MAX_JSON_BYTES = 2**24  # of a description; a tokenizer is read by its own library


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, its file is synced and takes the place of `path`.

    Raises:
        OSError: if it cannot be written; it names `path` where the system names no file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what `replacing` left in `folder` when its process was killed; only for who owns the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what stands in a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, or longer than `MAX_JSON_BYTES`, or too deep.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"it is longer than {MAX_JSON_BYTES >> 20} MiB")
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("brackets stand in brackets without end") from None


def require_unpacked_to_fit(members: Iterable[zipfile.ZipInfo], path: Path) -> None:
    """Raise `ValueError` where the members of an archive that packs nothing unpack to more than its size."""
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it unpacks to more than its size")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` outlast a power cut."""
    if os.name == "posix":
        _sync(folder)


def sync_file(path: Path) -> None:
    """Make what was written to `path` outlast a power cut."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
