"""The cores and the memory of this process."""

from __future__ import annotations

import ctypes
import os
import platform


def available_cpus() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep the memory that arrays and tensors free, for the next step's.

    By default it gives large blocks back to the system, which then clears every page anew: about a tenth of
    a training step on the CPU. Elsewhere than on Linux with glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of mallopt(3)
    libc = ctypes.CDLL(None)
    for option, size in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        libc.mallopt(option, size)
