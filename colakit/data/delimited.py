"""Streaming reader of text tables: lines of any encoding, and the rows of TSV and CSV.

Only LF, CRLF and CR end a line (not U+2028). Quoted rows are those of pandas' `read_csv`; a row that it would
repair (text after a closing quote) is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import IO

from colakit.errors import ColakitError

Fields = tuple[int, list[str]]  # number of the row's last line, from 1; fields
MAX_LINE = 2**20  # characters of a line, and of a quoted row of several lines
MAX_COLUMNS = 1000
CHUNK = 2**20  # bytes read at a time
LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")  # includes the line ending, if any
DELIMITERS = (",", ";", "\t", "|")
BYTE_ORDER_MARK = "\ufeff"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
csv.field_size_limit(MAX_LINE)  # the default is 128 KiB


def read_text(file: IO[bytes], where: str, encoding: str = "utf-8") -> Iterator[str]:
    """Yield a file's text in pieces that never split CR LF, without its byte-order mark.

    Raises:
        ColakitError: if it is of another encoding or contains a NUL; gives the byte offset.
    """
    characters = codecs.getincrementaldecoder(encoding)()
    decoder = io.IncrementalNewlineDecoder(characters, translate=False)
    done, is_last, begins = 0, False, True
    while not is_last:
        raw = file.read(CHUNK)
        is_last = not raw
        held = len(characters.getstate()[0])  # bytes of an incomplete character
        try:
            text = decoder.decode(raw, final=is_last)
        except UnicodeError as error:
            offset = done - held + getattr(error, "start", 0)
            raise ColakitError(
                f"{where}: not {encoding.upper()} at byte {offset}", hint=_other_encoding(raw, done)
            ) from None
        if "\0" in text:
            position = f" at byte {done + raw.index(0)}" if encoding == "utf-8" else ""
            raise ColakitError(f"{where}: a NUL byte{position}", hint=_other_encoding(raw, done))
        done += len(raw)
        if text:
            yield text.removeprefix(BYTE_ORDER_MARK) if begins else text
            begins = False


def _other_encoding(raw: bytes, offset: int) -> str:
    """Return a hint that names an encoding which may read `raw`."""
    encoding = "cp1252"
    if not offset and raw.startswith(UTF16_MARKS):
        encoding = "utf-16"
    elif b"\0" in raw:
        encoding = "utf-16-le"
    else:
        try:
            raw.decode(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
    return f"Is this a text file? Save it as UTF-8, or read it with --set data.encoding={encoding}"


def split_lines(pieces: Iterable[str], where: str, max_length: int | None = None) -> Iterator[str]:
    """Yield the lines of a text with their ends.

    Args:
        max_length: characters of a line; None: `MAX_LINE`.

    Raises:
        ColakitError: if a line is longer.
    """
    rest, number = "", 1
    max_length = MAX_LINE if max_length is None else max_length
    for piece in pieces:
        lines = LINE.findall(rest + piece)
        rest = lines.pop() if lines and lines[-1][-1] not in "\r\n" else ""
        number += len(lines)
        if len(rest) > max_length:
            raise _too_long(f"{where}:{number}", max_length)
        yield from lines
    if rest:
        yield rest


def read_rows(
    lines: Iterable[str], where: str, delimiter: str, *, quoted: bool, skip_blank: bool = True
) -> Iterator[Fields]:
    """Yield the numbered rows of lines.

    Args:
        quoted: whether double quotes enclose cells; else they are text, and a row is a line.
        skip_blank: omit lines of nothing but spaces and tabs that are no delimiters.

    Raises:
        ColakitError: if a row has over `MAX_LINE` characters or `MAX_COLUMNS` columns, or broken quoting.
    """
    blank = " \t\r\n".replace(delimiter, "")
    rows = _quoted_rows if quoted else _plain_rows
    for number, fields in rows(lines, where, delimiter, blank if skip_blank else None):
        if len(fields) > MAX_COLUMNS:
            raise ColakitError(
                f"{where}:{number}: {len(fields):,} columns; at most {MAX_COLUMNS:,} are allowed",
                hint="Remove the columns that are not needed.",
            )
        yield number, fields


def _plain_rows(lines: Iterable[str], where: str, delimiter: str, blank: str | None) -> Iterator[Fields]:
    for number, line in enumerate(lines, start=1):
        if blank is None or line.strip(blank):
            yield number, line.rstrip("\r\n").split(delimiter)


def _quoted_rows(lines: Iterable[str], where: str, delimiter: str, blank: str | None) -> Iterator[Fields]:
    number = begin = length = 0  # last line, first line and characters of the row

    def row_lines() -> Iterator[str]:
        nonlocal number, begin, length
        for number, line in enumerate(lines, start=1):
            if not length:
                if blank is not None and not line.strip(blank):
                    continue
                begin = number
            length += len(line)
            if length > MAX_LINE:
                raise _too_long(f"{where}:{begin}", MAX_LINE)
            yield line

    try:
        for fields in csv.reader(row_lines(), delimiter=delimiter, strict=True):
            length = 0
            if fields:
                yield number, fields
    except csv.Error as error:
        is_open = "end of data" in str(error)
        problem = "a quoted cell does not end" if is_open else str(error)
        raise ColakitError(
            f"{where}:{begin if is_open else number}: {problem}",
            hint="Fix the quoting. `--set data.quoting=none` reads quotes as text.",
        ) from error


def detect_delimiter(header: str, preferred: str, column: str | None) -> str:
    """Return the character between the names of a header.

    Args:
        header: its first line.
        preferred: the delimiter if the header shows no other.
        column: name of a column, if one is known; a delimiter that gives this name has priority.
    """

    def evidence(delimiter: str) -> tuple[bool, int, bool]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        return column in names, len(names), delimiter == preferred

    return max(DELIMITERS, key=evidence)


def _too_long(where: str, max_length: int) -> ColakitError:
    return ColakitError(
        f"{where}: a line is longer than {max_length >> 20} Mi characters", hint="Is this a text file?"
    )
