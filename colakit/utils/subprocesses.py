"""Commands of colakit in processes of their own, some side by side.

Each child has a session of its own, so that a Ctrl-C in the terminal reaches the parent alone, which passes
it on once: every child then finishes its step and saves. One whose parent is killed does so too
(`colakit/orphans.py`).
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
from colakit.utils.console import read_error
from colakit.utils.orphans import WATCHED

TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # would put control codes into errors
LOOK_SECONDS = 0.1  # between two looks at whether a signal has come
GRACE_SECONDS = 10.0  # for a child that is to leave at once
SHOWN_CHARACTERS = 2000  # of what a child said that ended without an error of colakit's

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Child:
    """One command line.

    Attributes:
        name: for people.
        words: what follows `colakit`.
    """

    name: str
    words: tuple[str, ...]


def run_side_by_side(
    children: Sequence[Child], workers: Sequence[Mapping[str, str]], tell: Tell
) -> list[str]:
    """Run commands, as many at a time as there are workers; return what each printed to stdout.

    When one fails or a signal comes, those that have not begun never do, and those at work are asked to stop
    and waited for: they save and can be resumed. A second Ctrl-C makes them leave at once.

    Args:
        workers: the environment of each.
        tell: is given the name of a child and each line that it writes to stderr, up to its error.

    Raises:
        ColakitError: that of the child that failed; or that all were stopped, with the signal's exit code.
    """
    crew = _Crew(workers, tell)
    waiting = deque(enumerate(children))
    printed = [""] * len(children)
    fault: ColakitError | None = None
    with stop_requests() as stop:
        try:
            while crew.at_work or (waiting and not (fault or stop.signal)):
                while waiting and crew.idle and not (fault or stop.signal):
                    crew.start(*waiting.popleft())
                ended = crew.wait_for_one()
                if ended is not None and ended.process.returncode == 0:
                    printed[ended.place] = "".join(ended.printed)
                elif ended is not None and fault is None and not ended.was_stopped(stop):
                    fault = ended.fault()
                    crew.ask_to_stop(signal.SIGTERM)
                if stop.signal is not None:
                    crew.ask_to_stop(stop.signal)
        finally:
            crew.dismiss()
    if fault is not None:
        raise fault
    if stop.signal is not None:
        raise ColakitError("stopped", exit_code=stop.exit_code)
    return printed


class _AtWork:
    """A child's process, and the threads that hear it out."""

    def __init__(
        self, place: int, child: Child, worker: Mapping[str, str], heard: queue.Queue[_Heard]
    ) -> None:
        self.place, self.child, self.worker = place, child, worker
        self.printed: list[str] = []
        self.said: list[str] = []
        self.asked: set[int] = set()  # signals that it was sent
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "colakit", *child.words],
            stdin=subprocess.PIPE,  # never written to: it ends when this process does
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={name: text for name, text in worker.items() if name not in TERMINAL} | {WATCHED: "yes"},
            start_new_session=True,
        )
        threading.Thread(target=self._hear, args=(heard,), daemon=True).start()

    def _hear(self, heard: queue.Queue[_Heard]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        output = threading.Thread(target=lambda: self.printed.extend(self.process.stdout or ()), daemon=True)
        output.start()
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            heard.put((self, self.said[-1]))
        output.join()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        heard.put((self, None))

    def send(self, number: int) -> None:
        """Send a signal, once; where there are none (Windows), children share the terminal's Ctrl-C."""
        if number not in self.asked and os.name == "posix":
            self.process.send_signal(number)
        self.asked.add(number)

    def was_stopped(self, stop: StopRequest) -> bool:
        """Whether it ended because a signal came that this process passed on."""
        code = self.process.returncode
        return stop.signal is not None and (code < 0 or code > 128)

    def fault(self) -> ColakitError:
        """Return the error that it ended with, under its name."""
        code = self.process.returncode
        found = read_error(self.said)
        if found is not None:
            message, hint = found
            exit_code = code if code > 0 else EXIT_FAILED
            return ColakitError(f"{self.child.name}: {message}", hint=hint, exit_code=exit_code)
        last = "\n".join(self.said)[-SHOWN_CHARACTERS:]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ColakitError(f"{self.child.name}: {how}\n{last}".rstrip(), exit_code=EXIT_FAILED)


_Heard = tuple[_AtWork, str | None]  # a line of stderr; None when the child has ended


class _Crew:
    """The children at work, and the workers that are idle."""

    def __init__(self, workers: Sequence[Mapping[str, str]], tell: Tell) -> None:
        self.idle = deque(workers)
        self.tell = tell
        self.at_work: list[_AtWork] = []
        self.heard: queue.Queue[_Heard] = queue.Queue()
        self.hushed: set[int] = set()  # places of children that have come to their error

    def start(self, place: int, child: Child) -> None:
        """Let an idle worker begin."""
        self.at_work.append(_AtWork(place, child, self.idle.popleft(), self.heard))

    def wait_for_one(self) -> _AtWork | None:
        """Pass on what is said in the next moment; return the child if one has ended."""
        try:
            child, line = self.heard.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return None
        if line is not None:
            self._pass_on(child, line)
            return None
        self.at_work.remove(child)
        self.idle.append(child.worker)
        return child

    def _pass_on(self, child: _AtWork, line: str) -> None:
        if line.startswith(("error: ", "Traceback (")):
            self.hushed.add(child.place)
        if child.place not in self.hushed and line:
            self.tell(child.child.name, line)

    def ask_to_stop(self, number: int) -> None:
        """Send a signal to all at work that have not been sent it."""
        for child in self.at_work:
            child.send(number)

    def dismiss(self) -> None:
        """Leave no child behind, whatever this process leaves for."""
        for child in self.at_work:
            child.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        try:
            for child in self.at_work:
                child.process.wait(GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            for child in self.at_work:
                child.process.kill()
