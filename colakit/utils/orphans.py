"""A command that another one started stops when that one is gone: nobody would hear what it has to say."""

from __future__ import annotations

import os
import signal
import threading

WATCHED = "STDIN_OF_COLAKIT_IS_ITS_PARENT"  # in the environment, as what begins with COLAKIT_ is a setting


def stop_with_parent() -> None:
    """Where stdin is a pipe that a parent holds, send this process SIGTERM once its other end is gone.

    A run that trains then saves and leaves; anything else just leaves. On Windows, where the signal ends a
    process at once, nothing is watched.
    """
    if os.environ.pop(WATCHED, None) is not None and os.name == "posix":
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):  # nothing is ever written, so it returns at the end
        pass
    os.kill(os.getpid(), signal.SIGTERM)
