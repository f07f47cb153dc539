"""Arrays on disk, found again by the content they were computed from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.utils.locks import Lock

FORMAT = 1  # raise it when the meaning of cached arrays changes
WAIT_SECONDS = 6 * 3600.0  # for another process that computes the same

Arrays = dict[str, NDArray[Any]]


def default_cache() -> Path:
    """Return `colakit` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "colakit"


class ArrayCache:
    """A folder of files named by the SHA-256 of what determines their contents.

    Each is the SHA-256 of an npz archive (32 bytes), then the archive.

    Args:
        say: is told where another process is waited for, once for each kind of array.
        keeps: whether anything is written; what is there already is read in any case.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], object] = lambda text: None, *, keeps: bool = True
    ) -> None:
        self.folder, self.say, self.keeps = folder, say, keeps
        self.waited_for: set[str] = set()

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return the file of `key`, which must be plain JSON data."""
        return self.folder / kind / f"{key_digest({'format': FORMAT, 'kind': kind, **key})}.arrays"

    def get(
        self,
        kind: str,
        key: Mapping[str, Any],
        compute: Callable[[], Arrays],
        check: Callable[[Arrays], None] = lambda arrays: None,
    ) -> Arrays:
        """Return the arrays of `key`, computing and keeping them the first time.

        A file that cannot be read is computed anew; a cache that cannot be written is done without. Where
        another process is computing the same, this one waits for it.

        Args:
            check: raises an exception where what was read is not what `compute` would return.

        Raises:
            ColakitError: if the other process takes more than `WAIT_SECONDS`.
        """
        if (arrays := self.load(kind, key, check)) is not None:
            return arrays
        if not self.keeps:
            return compute()
        with self._alone(self.path(kind, key).with_suffix(".lock"), kind):
            if (arrays := self.load(kind, key, check)) is None:
                self.store(kind, key, arrays := compute())
            return arrays

    @contextlib.contextmanager
    def _alone(self, path: Path, kind: str) -> Iterator[None]:
        """Hold the lock while the block runs; do without where none can be made."""

        def waiting(holder: str) -> None:
            if kind not in self.waited_for:
                self.waited_for.add(kind)
                self.say(f"{kind}: process {holder} is computing the same; waiting for it")

        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(Lock(path).held(WAIT_SECONDS, waiting))
            yield

    def load(
        self, kind: str, key: Mapping[str, Any], check: Callable[[Arrays], None] = lambda arrays: None
    ) -> Arrays | None:
        """Return the arrays of `key`, or None where they are not kept, or cannot be read."""
        with contextlib.suppress(Exception):  # whatever a damaged file makes numpy stumble over
            arrays = _unpack(self.path(kind, key).read_bytes())
            check(arrays)
            return arrays
        return None

    def store(self, kind: str, key: Mapping[str, Any], arrays: Arrays) -> None:
        """Keep the arrays of `key`, if the cache can be written."""
        if not self.keeps:
            return
        path = self.path(kind, key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_pack(arrays))
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def key_digest(key: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of plain JSON data."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _pack(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def _unpack(raw: bytes) -> Arrays:
    """Return the arrays; raise `ValueError` if a byte is not what was written."""
    digest, archive = raw[:32], raw[32:]
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("the checksum differs")
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        if sum(member.file_size for member in members.infolist()) > len(archive):
            raise ValueError("it unpacks to more than its size, and nothing was packed")
    with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def pack_lines(lines: Sequence[str]) -> Arrays:
    """Return lines, none of which holds a line break, as arrays."""
    return {"text": np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)}


def unpack_lines(arrays: Arrays) -> list[str]:
    """Return the lines that `pack_lines` was given."""
    text = arrays["text"].tobytes().decode()
    return text.split("\n") if text else []
