"""Signals that ask a run to stop once the step in hand is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LeaveAtOnce(KeyboardInterrupt):
    """Ends the run where it stands; the last checkpoint is what it continues from."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class StopRequest:
    """Whether, and by which signal, the run was asked to stop.

    Args:
        at_once: leave at the first signal, where there is no step to finish.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signal: int | None = None
        self.at_once = at_once

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C leaves at once."""
        if self.at_once or (self.signal is not None and number == signal.SIGINT):
            raise LeaveAtOnce(number)
        self.signal = number


@contextmanager
def stop_requests(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Catch stopping signals while the block runs; outside the main thread there are none to catch."""
    request = StopRequest(at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # nohup ignores one
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, request.receive) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
