"""Lock files: one process at a time in a run folder or a cache entry."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from colakit.errors import ColakitError

QUIET_SECONDS = 1.0  # waiting time before `waiting` is called
READ_ATTEMPTS = 10  # a new holder writes its PID shortly after it takes the lock


class Lock:
    """A lock file that holds the PID of its owner; the system releases the lock when the owner dies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(
        self, wait_seconds: float = 0.0, waiting: Callable[[str], object] = lambda pid: None
    ) -> Iterator[None]:
        """Hold the lock while the block runs, then delete its file.

        Args:
            wait_seconds: longest wait for another process that holds the lock.
            waiting: called once with the owner's PID if the wait exceeds `QUIET_SECONDS`.

        Raises:
            ColakitError: if another process still holds the lock; the message names its PID.
        """
        lock = FileLock(self.path, thread_local=False)
        try:
            try:
                lock.acquire(timeout=min(wait_seconds, QUIET_SECONDS))
            except Timeout:
                if wait_seconds <= QUIET_SECONDS:
                    raise
                waiting(self._owner())
                lock.acquire(timeout=wait_seconds - QUIET_SECONDS)
        except Timeout:
            raise ColakitError(
                f"{self.path.parent}: process {self._owner()} is running in this folder",
                hint="Wait for it, stop it, or choose another folder with --out.",
            ) from None
        try:
            if os.name == "posix":  # Windows denies access to a locked file
                self.path.write_text(f"{os.getpid()}\n", encoding="ascii")
            yield
        finally:
            if os.name == "posix":  # before the release: filelock retries if the file it locked was deleted
                self.path.unlink(missing_ok=True)
            lock.release()

    def _owner(self) -> str:
        for _ in range(READ_ATTEMPTS):
            with contextlib.suppress(OSError):
                if pid := self.path.read_text(encoding="ascii").strip():
                    return pid
            time.sleep(0.05)
        return "unknown"
