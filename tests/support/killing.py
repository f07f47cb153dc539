"""Runs in child processes that are killed with SIGKILL, after some time or at a given write call.

The child patches the functions that write files; the code under test is unchanged.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from colakit.cli.app import main
from colakit.storage.checkpoints import Checkpoints
from colakit.storage.run_folder import RunFolder
from colakit.training.trainer import Trainer

STARTING, TRAINING, WRITING, ENDED = range(4)  # phases of a run
BEGIN, END = "begin", "end"  # marks around a checkpoint in the list of write calls
WRITES = ("fsync", "rename", "replace", "unlink", "mkdir", "truncate", "ftruncate", "rmdir")  # of `os`


class Child:
    """A run in a forked process.

    Args:
        arguments: command line of colakit.
        log: file for its output.
        kill_at: number of the write call at which the child kills itself.
    """

    def __init__(self, arguments: list[str], log: Path, kill_at: int | None = None) -> None:
        self.shared = mmap.mmap(-1, 8)  # the phase
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, log, kill_at)

    def _run(self, arguments: list[str], log: Path, kill_at: int | None) -> None:
        code = 70
        try:
            with log.open("ab") as file:
                for number in (1, 2):
                    os.dup2(file.fileno(), number)
            calls = instrument(self.shared, kill_at)
            code = main(arguments)
            log.with_suffix(".calls").write_text(json.dumps(calls), encoding="utf-8")
        finally:
            self.shared[0] = ENDED
            os._exit(code)

    def wait(self, kill_after: float | None = None) -> tuple[int | None, int]:
        """Return (exit code, or None if the child was killed; its last phase)."""
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(self.pid, signal.SIGKILL)  # an ended child stays a zombie until waitpid
        _, status = os.waitpid(self.pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        code = None if killed else os.waitstatus_to_exitcode(status)
        return code, self.shared[0]


def instrument(shared: mmap.mmap, kill_at: int | None) -> list[str]:
    """Record the phase in `shared` and the write calls in the returned list; die at call `kill_at`."""
    calls: list[str] = []
    count = 0

    def is_hit(name: str) -> bool:
        nonlocal count
        count += 1
        calls.append(name)
        if count == kill_at:
            shared[0] = shared[0] if shared[0] == STARTING else WRITING
        return count == kill_at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if is_hit(function.__name__):
                die()
            return function(*arguments, **options)

        return call

    def torn_save(value: Any, file: Any) -> None:
        if is_hit("torch.save"):
            buffer = io.BytesIO()
            save(value, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            die()
        save(value, file)

    def torn_metrics(run: RunFolder, record: dict[str, Any]) -> None:
        if is_hit("metrics"):
            with run.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record)[:9])
            die()
        append(run, record)

    def recorded_step(*arguments: Any) -> None:
        shared[0] = TRAINING
        after_step(*arguments)

    def recorded_save(*arguments: Any) -> Any:
        shared[0] = WRITING
        calls.append(BEGIN)
        path = save_checkpoint(*arguments)
        calls.append(END)
        shared[0] = TRAINING
        return path

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    save, torch.save = torch.save, torn_save
    append, RunFolder.append_metrics = RunFolder.append_metrics, torn_metrics  # type: ignore[method-assign]
    after_step, Trainer._after_step = Trainer._after_step, recorded_step  # type: ignore[method-assign]
    save_checkpoint, Checkpoints.save = Checkpoints.save, recorded_save  # type: ignore[method-assign]
    return calls


TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class TwoProcesses:
    """A run in two processes under torchrun."""

    def __init__(self, arguments: list[str], out: Path) -> None:
        self.line = [
            *TWO_PROCESSES,
            "-m",
            "colakit",
            *arguments,
            "--quiet",
            "--resume",
            "auto",
            "--out",
            str(out),
        ]
        self.saved = Checkpoints(out / "checkpoints")

    def kill(self, rank: int, after_seconds: float) -> bool:
        """Start or resume the run, kill one process after the next checkpoint, and wait for the job's end.

        Returns:
            False if the run ended before the kill.
        """
        before, deadline = self.saved.paths()[:1], time.monotonic() + 120
        job = self._launch()
        while self.saved.paths()[:1] == before and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(after_seconds)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
        workers = sorted(children.read_text(encoding="ascii").split(), key=int) if children.exists() else []
        if len(workers) == 2:
            os.kill(int(workers[rank]), signal.SIGKILL)
        _, err = job.communicate(timeout=120)
        assert job.returncode or len(workers) < 2, err
        return job.returncode != 0

    def finish(self) -> None:
        """Start or resume the run and wait for its end."""
        job = self._launch()
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err

    def _launch(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
