"""Signal handling: stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class LeaveAtOnce(KeyboardInterrupt):
    """Stop at once, without saving; the run resumes from its last checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class StopRequest:
    """The signal received so far, if any.

    Args:
        at_once: raise `LeaveAtOnce` at the first signal.
        on_signal: called at the first signal.
    """

    def __init__(self, *, at_once: bool = False, on_signal: Callable[[], None] = lambda: None) -> None:
        self.signal: int | None = None
        self.at_once, self.on_signal = at_once, on_signal

    @property
    def exit_code(self) -> int:
        """128 + signal number: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Record the signal; a second Ctrl-C raises `LeaveAtOnce`."""
        if self.at_once or (self.signal is not None and number == signal.SIGINT):
            raise LeaveAtOnce(number)
        is_first, self.signal = self.signal is None, number
        if is_first:
            self.on_signal()


@contextmanager
def stop_requests(
    *, at_once: bool = False, on_signal: Callable[[], None] = lambda: None
) -> Iterator[StopRequest]:
    """Catch stop signals while the block runs; does nothing outside the main thread."""
    request = StopRequest(at_once=at_once, on_signal=on_signal)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    previous = {number: signal.signal(number, request.receive) for number in caught}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
