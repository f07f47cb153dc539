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
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, TextIO, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from colakit.utils.table_layout import fit_table
from colakit.utils.text import printable

if TYPE_CHECKING:  # imported on use, to keep `--help` fast
    from rich.progress import Progress, ProgressColumn
    from rich.table import Column

PIPE_WIDTH = 130  # characters; wide enough for every table
WIDE = 100  # characters of a terminal from which progress shows the elapsed time
ERROR, STOPPED = "error:", "stopped:"
SIGNALLED = 128  # exit codes above it are of signals
PLAIN_LINE_SECONDS = 10.0  # between progress lines without a terminal


def _print(console: Console, text: str, label: str = "", style: str = "") -> None:
    """Print a text after its label; on a terminal, lines are wrapped between words."""
    lines = printable(f"{label} {text}" if label else text, keep="\n").split("\n")
    if console.is_terminal:
        wrapper = textwrap.TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
        lines = [wrapper.fill(line) for line in lines]
    shown = Text("\n".join(lines))
    shown.stylize(style, 0, len(label) or len(shown))
    console.print(shown)


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

    Attributes:
        stage: printed before the title of progress, such as `2 of 5: `.
    """

    def __init__(self, *, quiet: bool = False, results_on_stderr: bool = False, within: bool = False) -> None:
        self.quiet, self.silent, self.stage = quiet, quiet and within, ""
        self._messages = _console(stderr=True)
        self._results = self._messages if results_on_stderr or within else _console(stderr=False)

    def say(self, text: str) -> None:
        """Print a message."""
        if not self.quiet:
            _print(self._messages, text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        _print(self._messages, text, "warning:", "bold yellow")

    def heading(self, text: str) -> None:
        """Print a heading."""
        if not self.quiet:
            _print(self._messages, f"\n{text}", style="bold")

    def result(self, text: str) -> None:
        """Print a line of results."""
        if not self.silent:
            _print(self._results, text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results; columns of numbers are right-aligned.

        A table that cannot fit into the terminal is printed as lines `column: cell`.
        """
        if self.silent:
            return
        from rich.table import Table

        title, columns = printable(title), [*map(printable, columns)]
        rows = [[*map(printable, row)] for row in rows]
        layout = fit_table(columns, rows, self._results.width, cell_len)
        if layout is None:
            self.result(title)
            for row in rows:
                lines = (f"{name}: {cell}" for name, cell in zip(columns, row, strict=True))
                self.result("\n  ".join(lines))
            return
        (header, *body), widths = layout
        self._results.print(Text(title, "bold"), soft_wrap=False)
        table = Table(header_style="bold")
        for index, (column, width) in enumerate(zip(header, widths, strict=True)):
            is_text = any(map(str.isalpha, "".join(row[index] for row in body)))
            table.add_column(column, justify="left" if is_text or not index else "right", width=width)
        for row in body:
            table.add_row(*row)
        self._results.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[ProgressTask]:
        """Show progress over `total` steps while the block runs."""
        title = printable(self.stage + title)
        if self.quiet:
            yield _NoProgress()
        elif not self._messages.is_terminal:
            yield _ProgressLines(self._messages, title, total, done)
        else:
            with _progress(self._messages) as bar:
                yield _ProgressBar(bar, title, total, done)


class SilentReporter(Reporter):
    """Prints nothing, for work that is only measured."""

    def __init__(self) -> None:
        super().__init__(quiet=True, within=True)

    def warn(self, text: str) -> None:
        """Print no warning: the work itself prints it."""


def _progress(console: Console) -> Progress:
    """Return progress bars of one line; in a narrow terminal the note is shortened, then the title."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def fixed(max_width: int | None = None) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", max_width=max_width)

    columns = [
        TextColumn("{task.description}", markup=False, table_column=fixed(max(8, console.width // 3))),
        BarColumn(max(8, min(40, console.width // 8)), table_column=fixed()),
        MofNCompleteColumn(table_column=fixed()),
        TextColumn("{task.fields[rate]}", markup=False, table_column=fixed()),
        TimeRemainingColumn(table_column=fixed()),
        _note_column(Column(ratio=1)),
    ]
    if console.width >= WIDE:
        columns.insert(-2, TimeElapsedColumn(table_column=fixed()))
    return Progress(*columns, console=console, expand=True)


def _note_column(column: Column) -> ProgressColumn:
    from rich.progress import ProgressColumn, Task

    class NoteColumn(ProgressColumn):
        def render(self, task: Task) -> _Shortened:
            return _Shortened(task.fields["note"])

    return NoteColumn(table_column=column)


@dataclass(frozen=True)
class _Shortened:
    """A text of one line that ends after the last word that fits."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(textwrap.shorten(self.text, options.max_width, placeholder=" …"), no_wrap=True)


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
        fields: dict[str, Any] = {"rate": f"{rate:.{int(rate < 100)}f}/s"}
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


def print_error(message: str, hint: str | None, exit_code: int = 1) -> None:
    """Print on stderr why the program ends, and the hint; after a signal it is no error."""
    console = _console(stderr=True)
    if exit_code > SIGNALLED:
        _print(console, message, STOPPED, "bold yellow")
    else:
        _print(console, message, ERROR, "bold red")
    if hint:
        _print(console, hint, "hint:", "bold")


def starts_error(line: str) -> bool:
    """Return whether `print_error` printed this line first."""
    return line.startswith((f"{ERROR} ", f"{STOPPED} "))


def read_error(lines: Sequence[str]) -> tuple[str, str | None] | None:
    """Return (message, hint) of the last `print_error` output in `lines`, or None."""
    starts = [number for number, line in enumerate(lines) if starts_error(line)]
    if not starts:
        return None
    text = "\n".join(lines[starts[-1] :]).partition(" ")[2]
    message, _, hint = text.partition("\nhint: ")
    return message, hint or None
