"""CPU count and memory allocation of this process."""

from __future__ import annotations

import ctypes
import os
import platform


def available_cpus() -> int:
    """Return the number of CPUs this process may use; OMP_THREAD_LIMIT is an upper bound."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    return min(count, int(limit)) if limit.isdecimal() and int(limit) else count


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse; does nothing without glibc.

    By default glibc returns large blocks to the system, which then zeroes every page again: about 10 % of a
    training step on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # parameters of mallopt(3)
    libc = ctypes.CDLL(None)
    for option, size in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        libc.mallopt(option, size)
