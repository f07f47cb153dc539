"""One process at a time holds a lock; the lock of a dead process is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colakit.errors import ColakitError
from colakit.utils.locks import Lock

HOLD = """
import sys, time
from pathlib import Path
from colakit.utils.locks import Lock
with Lock(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_held_lock_is_refused_with_the_pid_of_its_owner(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run.lock")
    with holder(lock.path) as process:
        for _ in range(2):  # a failed attempt must not erase the PID
            with pytest.raises(ColakitError, match=f"process {process.pid} is running"), lock.held():
                pass
        process.communicate("\n")
    assert not lock.path.exists()
    with lock.held():
        assert lock.path.read_text() == f"{os.getpid()}\n"
    assert not lock.path.exists()


def test_a_waiting_process_reports_the_owner_once_and_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colakit.utils.locks.QUIET_SECONDS", 0.1)
    lock, pids = Lock(tmp_path / "cache.lock"), []
    with holder(lock.path) as process:

        def waiting(pid: str) -> None:
            pids.append(pid)
            process.communicate("\n")

        with lock.held(wait_seconds=60, waiting=waiting):
            assert pids == [str(process.pid)]
            assert lock.path.read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run.lock")
    with holder(lock.path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert lock.path.exists()
    with lock.held():
        assert lock.path.read_text() == f"{os.getpid()}\n"
