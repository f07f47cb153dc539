"""Terminal output; the only module that imports rich.

Results go to stdout, all else to stderr. If stdout carries JSON or data, results go to stderr too. Without a
terminal, progress is printed as plain lines without control codes.

Texts come from files of others, so nothing is parsed as rich's mark-up, and control characters are printed as
escapes such as `\\x1b`. Data on stdout are escaped on a terminal only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:  # imported on use, to keep `--help` fast
    from rich.progress import Progress

PIPE_WIDTH = 130  # characters; wide enough for every table
PLAIN_LINE_SECONDS = 10.0  # between progress lines without a terminal
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: controls, formats, surrogates, line ends
JOINERS = "\u200c\u200d"  # needed by Persian, Indic scripts and emoji


def printable(text: str, keep: str = "") -> str:
    """Return `text` with control, format and surrogate characters as escapes such as `\\x1b`.

    Args:
        keep: characters that stay as they are, such as line ends.
    """
    if text.isprintable():
        return text
    keep += JOINERS
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in INVISIBLE and character not in keep
        else character
        for character in text
    )


def _message(text: str) -> str:
    return printable(text, keep="\n")


class _PipeSafeConsole(Console):
    """A console that ignores a closed pipe: `| head` must not end a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(self.file)


def _silence(stream: IO[str]) -> None:
    """Redirect a stream with a closed pipe to /dev/null, so that flushing it at exit does not fail."""
    with contextlib.suppress(OSError, ValueError):  # no file descriptor
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def _console(*, stderr: bool) -> Console:
    """Return a console as wide as the terminal; in a pipe, `COLUMNS` or `PIPE_WIDTH` wide."""
    console = _PipeSafeConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


class ProgressTask(Protocol):
    """A progress bar of running work."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Add finished steps; a `note` replaces the text beside the bar."""


class Reporter:
    """Prints messages, progress and results.

    Args:
        quiet: omit progress and messages, but not warnings, errors and results.
        results_on_stderr: keep stdout for JSON or data.
        within: running inside another command: results are messages.
    """

    def __init__(self, *, quiet: bool = False, results_on_stderr: bool = False, within: bool = False) -> None:
        self.quiet, self.silent = quiet, quiet and within
        self._messages = _console(stderr=True)
        self._results = self._messages if results_on_stderr or within else _console(stderr=False)

    def say(self, text: str) -> None:
        """Print a message."""
        if not self.quiet:
            self._messages.print(_message(text))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._messages.print(Text.assemble(("warning:", "bold yellow"), f" {_message(text)}"))

    def heading(self, text: str) -> None:
        """Print a heading."""
        if not self.quiet:
            self._messages.print(Text(f"\n{_message(text)}", "bold"))

    def result(self, text: str) -> None:
        """Print a line of results."""
        if not self.silent:
            self._results.print(_message(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results; columns after the first are right-aligned."""
        if self.silent:
            return
        from rich.table import Table

        title = printable(title)
        table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(printable(column), justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(printable, row))
        self._results.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        """Show progress over `total` steps while the block runs."""
        title = printable(title)
        if self.quiet:
            yield _NoProgress()
        elif not self._messages.is_terminal:
            yield _ProgressLines(self._messages, title, total, done)
        else:
            with _progress(self._messages) as bar:
                yield _ProgressBar(bar, title, total, done)


def _progress(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class _NoProgress:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _ProgressBar:
    def __init__(self, bar: Progress, title: str, total: int, done: int) -> None:
        self.bar = bar
        self.task = bar.add_task(title, total=total, completed=done, note="", rate="")
        self.done, self.started, self.first = done, time.monotonic(), done

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        rate = (self.done - self.first) / max(1e-9, time.monotonic() - self.started)
        fields: dict[str, Any] = {"rate": f"{rate:.1f}/s"}
        if note:
            fields["note"] = printable(note)
        self.bar.update(self.task, advance=steps, **fields)


class _ProgressLines:
    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self.console, self.title, self.total, self.done = console, title, total, done
        self.first, self.started = done, time.monotonic()
        self.printed = self.started

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.printed < PLAIN_LINE_SECONDS and self.done < self.total:
            return
        self.printed = now
        rate = (self.done - self.first) / max(1e-9, now - self.started)
        left = (self.total - self.done) / max(rate, 1e-9)
        line = f"{self.title}: {self.done}/{self.total} ({rate:.1f}/s, {left:.0f} s left) {printable(note)}"
        self.console.print(line.rstrip())


class _EscapingStream:
    """A stream to a terminal that prints control characters other than line ends and tabs as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text, keep="\n\t"))

    def flush(self) -> None:
        self.stream.flush()


def data_output() -> TextIO:
    """Return stdout for data: unchanged in a pipe or file; on a terminal, control characters are escaped."""
    return cast("TextIO", _EscapingStream(sys.stdout)) if sys.stdout.isatty() else sys.stdout


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; on a terminal in ASCII, as JSON escapes everything else."""
    try:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=sys.stdout.isatty()) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint on stderr."""
    console = _console(stderr=True)
    console.print(Text.assemble(("error:", "bold red"), f" {_message(message)}"))
    if hint:
        console.print(Text.assemble(("hint:", "bold"), f" {_message(hint)}"))


def read_error(lines: Sequence[str]) -> tuple[str, str | None] | None:
    """Return (message, hint) of the last `print_error` output in `lines`, or None."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return None
    text = "\n".join(lines[starts[-1] :]).removeprefix("error: ")
    message, _, hint = text.partition("\nhint: ")
    return message, hint or None
