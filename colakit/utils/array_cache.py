"""Cache of computed arrays on disk, keyed by a hash of their inputs."""

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

FORMAT = 2  # increment when the meaning of cached arrays changes
WAIT_SECONDS = 6 * 3600.0  # longest wait for another process that computes the same arrays

Arrays = dict[str, NDArray[Any]]


def default_cache() -> Path:
    """Return the folder `colakit` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "colakit"


class ArrayCache:
    """A folder of array files; each contains the SHA-256 of an npz archive (32 bytes), then the archive.

    Args:
        log: called with a message when waiting for another process, once per kind of array.
        read_only: load cached arrays but store none.
    """

    def __init__(
        self, folder: Path, log: Callable[[str], object] = lambda text: None, *, read_only: bool = False
    ) -> None:
        self.folder, self.log, self.read_only = folder, log, read_only
        self.waited_for: set[str] = set()

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return the file of `key` (plain JSON data)."""
        return self.folder / kind / f"{key_digest({'format': FORMAT, 'kind': kind, **key})}.arrays"

    def get(
        self,
        kind: str,
        key: Mapping[str, Any],
        compute: Callable[[], Arrays],
        check: Callable[[Arrays], None] = lambda arrays: None,
    ) -> Arrays:
        """Return the cached arrays of `key`, or compute and store them.

        Damaged files are recomputed, and a cache that cannot be written is not used. If another process is
        computing the same arrays, this one waits for it.

        Args:
            check: raises any exception if loaded arrays are not a possible result of `compute`.

        Raises:
            ColakitError: if the other process takes more than `WAIT_SECONDS`.
        """
        if (arrays := self.load(kind, key, check)) is not None:
            return arrays
        if self.read_only:
            return compute()
        with self._locked(self.path(kind, key).with_suffix(".lock"), kind):
            if (arrays := self.load(kind, key, check)) is None:
                self.store(kind, key, arrays := compute())
            return arrays

    @contextlib.contextmanager
    def _locked(self, path: Path, kind: str) -> Iterator[None]:
        """Hold the lock while the block runs; without a lock if the folder cannot be written."""

        def waiting(pid: str) -> None:
            if kind not in self.waited_for:
                self.waited_for.add(kind)
                self.log(f"{kind}: waiting for process {pid}, which is computing the same arrays")

        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(Lock(path).held(WAIT_SECONDS, waiting))
            yield

    def load(
        self, kind: str, key: Mapping[str, Any], check: Callable[[Arrays], None] = lambda arrays: None
    ) -> Arrays | None:
        """Return the cached arrays of `key`, or None if they are missing or damaged."""
        with contextlib.suppress(Exception):  # numpy raises many error types on a damaged file
            arrays = _unpack(self.path(kind, key).read_bytes())
            check(arrays)
            return arrays
        return None

    def store(self, kind: str, key: Mapping[str, Any], arrays: Arrays) -> None:
        """Store the arrays of `key`, if the cache can be written."""
        if self.read_only:
            return
        path = self.path(kind, key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            temporary.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def key_digest(key: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of plain JSON data."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _unpack(raw: bytes) -> Arrays:
    """Return the arrays; raise `ValueError` if any byte has changed."""
    digest, archive = raw[:32], raw[32:]
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("the checksum differs")
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        if sum(member.file_size for member in members.infolist()) > len(archive):
            raise ValueError("uncompressed archive unpacks to more than its size")
    with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def pack_lines(lines: Sequence[str]) -> Arrays:
    """Return lines (without line breaks) as arrays."""
    return {"text": np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)}


def unpack_lines(arrays: Arrays) -> list[str]:
    """Return the lines of `pack_lines`."""
    text = arrays["text"].tobytes().decode()
    return text.split("\n") if text else []
