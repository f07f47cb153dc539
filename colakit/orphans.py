"""A command that another one started stops when that one is gone: nobody would hear what it has to say."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT = "PARENT_OF_COLAKIT"  # in the environment: the number of the process to stop with
LOOK_SECONDS = 1.0


def stop_with_parent() -> None:
    """Where a parent is named, watch it, and send this process SIGTERM once it is gone: it saves and leaves.

    Windows gives orphans no other parent; there nothing is watched.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or os.name != "posix":
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
