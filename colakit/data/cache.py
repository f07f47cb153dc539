"""Arrays on disk, found again by the content they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # raise it when the meaning of cached arrays changes

Arrays = dict[str, NDArray[Any]]


def default_cache() -> Path:
    """Return the cache folder: `COLAKIT_CACHE`, else `colakit` in the user's cache folder."""
    if chosen := os.environ.get("COLAKIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "colakit"


class ArrayCache:
    """A folder of `.npz` files named by the SHA-256 of what determines their contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return the file of `key`, which must be plain JSON data."""
        text = json.dumps({"format": FORMAT, "kind": kind, **key}, sort_keys=True)
        return self.folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def get(self, kind: str, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of `key`, computing and keeping them the first time.

        A file that cannot be read is computed anew; a cache that cannot be written is done without.
        """
        path = self.path(kind, key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            arrays = compute()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
        return arrays
