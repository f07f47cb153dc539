"""Child processes that run colakit commands, several at a time.

Each child has its own session, so a Ctrl-C in the terminal reaches only the parent, which forwards it once:
every child then finishes its step and saves. A child also stops when its parent dies (`stop_with_parent`).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colakit.errors import EXIT_FAILED, ColakitError
from colakit.runtime.signals import StopRequest, stop_requests
from colakit.utils.console import read_error, starts_error

WATCH_STDIN = "STDIN_OF_COLAKIT_IS_ITS_PARENT"  # environment variable; the prefix COLAKIT_ marks settings
TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # would put control codes into errors
POLL_SECONDS = 0.1  # between two checks for a signal
GRACE_SECONDS = 10.0  # for a child to exit after the last signal, before it is killed
SHOWN_CHARACTERS = 2000  # of stderr, when a child ends without a colakit error

Log = Callable[[str, str], None]


@dataclass(frozen=True)
class Child:
    """A colakit command to run.

    Attributes:
        name: display name.
        words: arguments after `colakit`.
    """

    name: str
    words: tuple[str, ...]


def stop_with_parent() -> None:
    """In a child process, send SIGTERM to this process once its parent is gone (POSIX only).

    The parent holds the other end of stdin and never writes to it, so a read returns when the parent dies.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(WATCH_STDIN, None) is not None and os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def run_side_by_side(children: Sequence[Child], workers: Sequence[Mapping[str, str]], log: Log) -> list[str]:
    """Run commands, at most one per worker at a time; return the stdout of each.

    After a failure or a signal no further child starts; running children get a signal, save and exit, and
    can be resumed. A second Ctrl-C stops them at once.

    Args:
        workers: one environment per worker.
        log: called with a child's name and each line of its stderr, up to its error.

    Raises:
        ColakitError: the error of the first child that failed, or "by a signal" with the signal's exit code.
    """
    pool = Pool(workers, log)
    waiting = deque(enumerate(children))
    outputs = [""] * len(children)
    failure: ColakitError | None = None
    with stop_requests() as stop:
        try:
            while pool.running or (waiting and not (failure or stop.signal)):
                while waiting and pool.idle and not (failure or stop.signal):
                    pool.start(*waiting.popleft())
                ended = pool.poll()
                if ended is not None and ended.process.returncode == 0:
                    outputs[ended.index] = "".join(ended.stdout)
                elif ended is not None and failure is None and not ended.was_stopped(stop):
                    failure = ended.failure()
                    pool.send_signal(signal.SIGTERM)
                if stop.signal is not None:
                    pool.send_signal(stop.signal)
        finally:
            pool.close()
    if failure is not None:
        raise failure
    if stop.signal is not None:
        raise ColakitError("by a signal", exit_code=stop.exit_code)
    return outputs


class Running:
    """A child's process and the threads that read its output."""

    def __init__(
        self, index: int, child: Child, worker: Mapping[str, str], events: queue.Queue[_Event]
    ) -> None:
        self.index, self.child, self.worker = index, child, worker
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.sent: set[int] = set()  # signals
        self.has_failed = False  # its error has begun on stderr
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "colakit", *child.words],
            stdin=subprocess.PIPE,  # never written to; closed when this process ends
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={name: text for name, text in worker.items() if name not in TERMINAL} | {WATCH_STDIN: "yes"},
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: queue.Queue[_Event]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        output = threading.Thread(target=lambda: self.stdout.extend(self.process.stdout or ()), daemon=True)
        output.start()
        for line in self.process.stderr:
            self.stderr.append(line.rstrip("\n"))
            events.put((self, self.stderr[-1]))
        output.join()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        events.put((self, None))

    def send_signal(self, number: int) -> None:
        """Send a signal once (on Windows the child gets the terminal's Ctrl-C)."""
        if number not in self.sent and os.name == "posix":
            self.process.send_signal(number)
        self.sent.add(number)

    def was_stopped(self, stop: StopRequest) -> bool:
        """Whether the child ended because of a signal that this process forwarded."""
        code = self.process.returncode
        return stop.signal is not None and (code < 0 or code > 128)

    def failure(self) -> ColakitError:
        """Return the child's error, prefixed with its name."""
        code = self.process.returncode
        error = read_error(self.stderr)
        if error is not None:
            message, hint = error
            exit_code = code if code > 0 else EXIT_FAILED
            return ColakitError(f"{self.child.name}: {message}", hint=hint, exit_code=exit_code)
        last = "\n".join(self.stderr)[-SHOWN_CHARACTERS:]
        cause = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return ColakitError(f"{self.child.name}: {cause}\n{last}".rstrip(), exit_code=EXIT_FAILED)


_Event = tuple[Running, str | None]  # a line of stderr; None when the child has ended


class Pool:
    """The running children and the idle workers."""

    def __init__(self, workers: Sequence[Mapping[str, str]], log: Log) -> None:
        self.idle = deque(workers)
        self.log = log
        self.running: list[Running] = []
        self.events: queue.Queue[_Event] = queue.Queue()

    def start(self, index: int, child: Child) -> Running:
        """Start a child on an idle worker."""
        self.running.append(Running(index, child, self.idle.popleft(), self.events))
        return self.running[-1]

    def poll(self) -> Running | None:
        """Handle one event, waiting up to `POLL_SECONDS`; return the child if one has ended."""
        try:
            child, line = self.events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return None
        if line is None:
            self.running.remove(child)
            self.idle.append(child.worker)
            return child
        child.has_failed |= starts_error(line) or line.startswith("Traceback (")
        if line and not child.has_failed:
            self.log(child.child.name, line)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal once to each running child."""
        for child in self.running:
            child.send_signal(number)

    def close(self) -> None:
        """Stop all running children."""
        for child in self.running:
            child.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        try:
            for child in self.running:
                child.process.wait(GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            for child in self.running:
                child.process.kill()
