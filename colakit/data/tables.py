"""Rows of TSV and CSV files, with every fault named by its line.

TSV is read as CoLA is written: a row a line, no quoting, whatever quotes a sentence holds. CSV is read with
quoting. Lines end in LF, CRLF or CR; nothing else (U+2028 in a sentence, say) ends one.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from pathlib import PurePath

from colakit.errors import ColakitError, did_you_mean

Row = tuple[int, list[str]]  # line number from 1, fields
MAX_FAULTS_SHOWN = 5


def decode(raw: bytes, where: str) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Raises:
        ColakitError: if it is not UTF-8 or holds a NUL, with the byte offset.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        skipped = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0  # the codec counts after it
        raise ColakitError(
            f"{where}: not UTF-8 at byte {error.start + skipped}", hint="Save the file as UTF-8."
        ) from None
    if "\0" in text:
        raise ColakitError(f"{where}: a NUL byte at byte {raw.index(0)}", hint="Is this a text file?")
    return text


def read_rows(raw: bytes, where: str) -> list[Row]:
    """Return the numbered rows of a file; `where` names it and, by its ending, its format."""
    text = decode(raw, where)
    if PurePath(where).suffix.lower() == ".csv":
        csv.field_size_limit(max(len(text), csv.field_size_limit()))  # by default 128 KiB
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, fields) for fields in reader if fields]
        except csv.Error as error:
            raise ColakitError(f"{where}:{reader.line_num}: {error}", hint="Mend the quoting.") from error
    return list(_split_lines(text))


def _split_lines(text: str) -> Iterator[Row]:
    lines = re.split(r"\r\n|\n|\r", text)
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.split("\t")


def require_columns(rows: list[Row], width: int, where: str) -> None:
    """Raise `ColakitError` unless every row has `width` fields."""
    faults = [(number, f"{len(fields)} columns") for number, fields in rows if len(fields) != width]
    raise_faults(faults, where, f"every row must have {width} columns")


def column_index(header: list[str], name: str, setting: str, where: str) -> int:
    """Return where column `name` stands in `header`."""
    if name not in header:
        raise ColakitError(
            f"{where}: no column {name!r} (has {', '.join(header)}).{did_you_mean(name, header)}",
            hint=f"Name the column: --set {setting}=NAME",
        )
    return header.index(name)


def raise_faults(faults: list[tuple[int, str]], where: str, rule: str) -> None:
    """Raise one error that lists the first faulty lines and counts all; return if there are none."""
    if not faults:
        return
    shown = "; ".join(f"line {number}: {what}" for number, what in faults[:MAX_FAULTS_SHOWN])
    more = f"; and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
    first, lines = faults[0][0], "line" if len(faults) == 1 else "lines"
    raise ColakitError(
        f"{where}:{first}: {rule} ({len(faults)} faulty {lines}: {shown}{more})",
        hint="Mend these lines; nothing was written.",
    )
