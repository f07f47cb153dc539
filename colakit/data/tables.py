"""Streaming reader of TSV and CSV rows, with errors by line number.

TSV is read like CoLA: one row a line, without quoting. CSV is read with quoting. Only LF, CRLF and CR end a
line (not U+2028).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import IO

from colakit.errors import ColakitError, did_you_mean

Row = tuple[int, list[str]]  # line number from 1, fields
MAX_SHOWN = 5
MAX_ERRORS = 1000  # invalid lines of a file after which reading stops
MAX_CELL_SHOWN = 40  # characters of a cell in an error
MAX_LINE = 2**20  # characters of a line, and of a CSV row of several lines
MAX_COLUMNS = 1000
CHUNK = 2**20  # bytes read at a time
LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")  # includes the line ending, if any


class RowErrors:
    """Invalid lines of one file: up to `MAX_ERRORS` are counted, the first `MAX_SHOWN` are reported.

    Args:
        where: the file.
        rule: the rule that every line must follow.
    """

    def __init__(self, where: str, rule: str) -> None:
        self.where, self.rule = where, rule
        self.shown: list[tuple[int, str]] = []
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        """Record an invalid line; raise `ColakitError` after `MAX_ERRORS` of them."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append((line, problem))
        if self.count == MAX_ERRORS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise one `ColakitError` for all invalid lines, if there are any."""
        if not self.count:
            return
        shown = "; ".join(f"line {number}: {problem}" for number, problem in self.shown)
        more = f"; and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        lines = "line" if self.count == 1 else "lines"
        count = f"{self.count}{' or more' if self.count == MAX_ERRORS else ''}"
        raise ColakitError(
            f"{self.where}:{self.shown[0][0]}: {self.rule} ({count} invalid {lines}: {shown}{more})",
            hint="Fix these lines; nothing was written.",
        )


def decode(raw: bytes, where: str) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Raises:
        ColakitError: if it is not UTF-8 or contains a NUL; gives the byte offset.
    """
    return "".join(_pieces(io.BytesIO(raw), where))


def read_rows(file: IO[bytes], where: str) -> Iterator[Row]:
    """Yield the numbered rows of a file; the suffix of its name `where` selects CSV or TSV.

    Raises:
        ColakitError: if it is not UTF-8, contains a NUL, has a row over `MAX_LINE` characters or over
            `MAX_COLUMNS` columns, or broken quoting.
    """
    lines = _lines(_pieces(file, where), where)
    if PurePath(where).suffix.lower() == ".csv":
        rows = _csv_rows(lines, where)
    else:
        rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, start=1))
    for number, fields in rows:
        if len(fields) > MAX_COLUMNS:
            raise ColakitError(
                f"{where}:{number}: {len(fields):,} columns; at most {MAX_COLUMNS:,} are allowed",
                hint="Remove the columns that are not needed.",
            )
        yield number, fields


def _csv_rows(lines: Iterator[str], where: str) -> Iterator[Row]:
    length = 0  # characters of the row

    def counted() -> Iterator[str]:
        nonlocal length
        for number, line in enumerate(lines, start=1):
            length += len(line)
            if length > MAX_LINE:
                raise _too_long(f"{where}:{number}")
            yield line

    csv.field_size_limit(MAX_LINE)  # the default is 128 KiB
    reader = csv.reader(counted(), strict=True)
    try:
        for fields in reader:
            length = 0
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ColakitError(f"{where}:{reader.line_num}: {error}", hint="Fix the quoting.") from error


def _too_long(where: str) -> ColakitError:
    return ColakitError(
        f"{where}: a line is longer than {MAX_LINE >> 20} Mi characters", hint="Is this a text file?"
    )


def _pieces(file: IO[bytes], where: str) -> Iterator[str]:
    """Yield a file's text in chunks that never split CR LF."""
    characters = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(characters, translate=False)
    done, is_last, begins = 0, False, True
    while not is_last:
        raw = file.read(CHUNK)
        is_last = not raw
        held = len(characters.getstate()[0])  # bytes of an incomplete character
        try:
            text = decoder.decode(raw, final=is_last)
        except UnicodeDecodeError as error:
            raise ColakitError(
                f"{where}: not UTF-8 at byte {done - held + error.start}", hint="Save the file as UTF-8."
            ) from None
        if b"\0" in raw:
            position = done + raw.index(0)
            raise ColakitError(f"{where}: a NUL byte at byte {position}", hint="Is this a text file?")
        done += len(raw)
        if text:
            yield text.removeprefix("\ufeff") if begins else text
            begins = False


def _lines(pieces: Iterable[str], where: str) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        lines = LINE.findall(rest + piece)
        rest = lines.pop() if lines and lines[-1][-1] not in "\r\n" else ""
        if len(rest) > MAX_LINE:
            raise _too_long(where)
        yield from lines
    if rest:
        yield rest


def shown(cell: str) -> str:
    """Return a cell quoted and shortened for an error message."""
    return repr(cell if len(cell) <= MAX_CELL_SHOWN else cell[:MAX_CELL_SHOWN] + "…")


def column_index(header: list[str], name: str, setting: str, where: str) -> int:
    """Return the index of column `name` in `header`; raise `ColakitError` if it is missing."""
    if name not in header:
        has = ", ".join(header)
        raise ColakitError(
            f"{where}: no column {name!r} (has {has if len(has) <= 200 else has[:200] + '…'})."
            f"{did_you_mean(name, header[:50])}",
            hint=f"Name the column: --set {setting}=NAME",
        )
    return header.index(name)
