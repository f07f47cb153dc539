"""One process at a time in a folder: a run in its own, a download in the cache."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from colakit.errors import ColakitError

try:
    import fcntl
except ImportError:  # Windows, whose locks would keep others from reading the number inside: none is held
    fcntl = None  # type: ignore[assignment]


WAIT_SECONDS = 0.05  # between two looks at a lock that another process holds
SILENT_SECONDS = 1.0  # waited without a word
LOOKS = 10  # for the number of a holder


class Lock:
    """A file that a process holds while it works in a folder; the system frees it when the process dies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(
        self, wait_seconds: float = 0.0, waiting: Callable[[str], object] = lambda holder: None
    ) -> Iterator[None]:
        """Hold the lock while the block runs, then remove its file.

        Args:
            wait_seconds: how long to wait for another process that holds it.
            waiting: is told that one's number, once, if that takes longer than `SILENT_SECONDS`.

        Raises:
            ColakitError: if another process holds it still, with that one's number.
        """
        if fcntl is None:
            yield
            return
        descriptor = self._acquire(wait_seconds, waiting)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            # before it is let go, so that nobody locks a file without a name
            self.path.unlink(missing_ok=True)
            os.close(descriptor)

    def _acquire(self, wait_seconds: float, waiting: Callable[[str], object]) -> int:
        began, told = time.monotonic(), False
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                waited = time.monotonic() - began
                if waited >= wait_seconds:
                    raise self._taken() from None
                if waited >= SILENT_SECONDS and not told:
                    told = True
                    waiting(self._holder())
                time.sleep(WAIT_SECONDS)
                continue
            if _is_at(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # its holder removed it in between

    def _taken(self) -> ColakitError:
        return ColakitError(
            f"{self.path.parent}: process {self._holder()} is at work in this folder",
            hint="Wait for it, stop it, or choose another folder with --out.",
        )

    def _holder(self) -> str:
        for _ in range(LOOKS):  # who holds it writes its number a moment later
            with contextlib.suppress(OSError):
                if number := self.path.read_text(encoding="ascii").strip():
                    return number
            time.sleep(WAIT_SECONDS)
        return "unknown"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)
