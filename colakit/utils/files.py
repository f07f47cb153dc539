"""Atomic writes, checksums."""

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
"""Write errors of the system, not of the path: disk or quota full, file too large, failing disk."""
CHUNK = 1 << 20  # bytes per read when hashing


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file; after the block, sync it and rename it to `path`.

    The file has the mode that the umask gives to new files, also if a library replaces it (safetensors makes
    files that only their owner can read).

    Raises:
        OSError: if it cannot be written; its `filename` is set.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
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
    """Remove temporary files that killed processes left in `folder`; the caller must hold its lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` to `path` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def require_unpacked_to_fit(members: Iterable[zipfile.ZipInfo], path: Path) -> None:
    """Raise `ValueError` if an uncompressed archive unpacks to more than its size."""
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("unpacks to more than its size")


def sync_folder(folder: Path) -> None:
    """Sync the directory entries of `folder` to disk (POSIX only)."""
    if os.name == "posix":
        sync_file(folder)


def sync_file(path: Path) -> None:
    """Sync the content of `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
