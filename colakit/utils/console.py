"""Everything that people see while a command runs; the only module that imports rich.

Results go to stdout, or to stderr with the rest where stdout carries JSON or data. Where there is no
terminal, progress is plain lines without control codes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # imported where they are used, so that `--help` does without
    from rich.progress import Progress

PIPE_WIDTH = 130  # characters; wide enough for every table
PLAIN_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


class _LastingConsole(Console):
    """A console that falls silent when its reader leaves: `| head` must not end a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(self.file)


def _silence(stream: IO[str]) -> None:
    """Let a stream whose reader has left lead nowhere, so that closing it does not fail either."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _console(*, stderr: bool) -> Console:
    """A console as wide as its terminal; in a pipe, as wide as `COLUMNS` or `PIPE_WIDTH` says."""
    console = _LastingConsole(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


class ProgressTask(Protocol):
    """What a running piece of work tells about itself."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Add finished steps; `note` replaces the live line."""


class Reporter:
    """Speaks to people and prints results.

    Args:
        quiet: leave out progress and remarks; warnings, errors and results stay.
        results_on_stderr: keep stdout for JSON or data.
        within: this is part of another command's work, whose results are no more than remarks.
    """

    def __init__(self, *, quiet: bool = False, results_on_stderr: bool = False, within: bool = False) -> None:
        self.quiet, self.silent = quiet, quiet and within
        self._remarks = _console(stderr=True)
        self._results = self._remarks if results_on_stderr or within else _console(stderr=False)

    def say(self, text: str) -> None:
        """Remark on what is going on."""
        if not self.quiet:
            self._remarks.print(escape(text))

    def warn(self, text: str) -> None:
        """Point out something that should not be overlooked."""
        self._remarks.print(f"[bold yellow]warning:[/] {escape(text)}")

    def heading(self, text: str) -> None:
        """Open a part of what is going on."""
        if not self.quiet:
            self._remarks.print(f"\n[bold]{escape(text)}[/]")

    def result(self, text: str) -> None:
        """Print a line of the result."""
        if not self.silent:
            self._results.print(escape(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns after the first are aligned right."""
        if self.silent:
            return
        from rich.table import Table

        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for position, column in enumerate(columns):
            table.add_column(escape(column), justify="right" if position else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._results.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, what: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        """Show a bar over `total` steps while the block runs."""
        if self.quiet:
            yield _Silent()
        elif not self._remarks.is_terminal:
            yield _Lines(self._remarks, what, total, done)
        else:
            with _progress(self._remarks) as bar:
                yield _Bar(bar, what, total, done)


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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _Bar:
    def __init__(self, bar: Progress, what: str, total: int, done: int) -> None:
        self.bar = bar
        self.task = bar.add_task(escape(what), total=total, completed=done, note="", rate="")
        self.done, self.started, self.first = done, time.monotonic(), done

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        rate = (self.done - self.first) / max(1e-9, time.monotonic() - self.started)
        fields: dict[str, Any] = {"rate": f"{rate:.1f}/s"}
        if note:
            fields["note"] = escape(note)
        self.bar.update(self.task, advance=steps, **fields)


class _Lines:
    def __init__(self, console: Console, what: str, total: int, done: int) -> None:
        self.console, self.what, self.total, self.done = console, what, total, done
        self.first, self.started = done, time.monotonic()
        self.spoke = self.started

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.spoke < PLAIN_LINE_SECONDS and self.done < self.total:
            return
        self.spoke = now
        rate = (self.done - self.first) / max(1e-9, now - self.started)
        left = (self.total - self.done) / max(rate, 1e-9)
        self.console.print(
            escape(f"{self.what}: {self.done}/{self.total} ({rate:.1f}/s, {left:.0f} s left) {note}".rstrip())
        )


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    try:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)


def print_error(message: str, hint: str | None) -> None:
    """Print a fault on stderr, with what to do about it."""
    console = _console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        console.print(f"[bold]hint:[/] {escape(hint)}")


def read_error(lines: Sequence[str]) -> tuple[str, str | None] | None:
    """Return the message and the hint that `print_error` wrote as the last of `lines`, if it did."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return None
    text = "\n".join(lines[starts[-1] :]).removeprefix("error: ")
    message, _, hint = text.partition("\nhint: ")
    return message, hint or None
