"""Streaming reader of JSON objects: one a line, or the elements of one array."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from colakit.data.delimited import MAX_COLUMNS, MAX_LINE, split_lines
from colakit.data.row_errors import RowErrors
from colakit.errors import ColakitError
from colakit.utils.documents import MAX_DIGITS

Record = tuple[int, dict[str, Any]]  # number of the line or element, from 1; values by name
SPACE = re.compile(r"[ \t\r\n]*")


def read_json(pieces: Iterator[str], where: str) -> Iterator[Record]:
    """Yield the objects of JSON lines or of a JSON array, whichever the text begins with.

    Args:
        pieces: the text.

    Raises:
        ColakitError: if a line or element is not an object, or is longer than `MAX_LINE`.
    """
    start = ""
    while not start.strip() and (piece := next(pieces, "")):
        start += piece
    pieces = itertools.chain([start], pieces)
    yield from _read_array(pieces, where) if start.lstrip().startswith("[") else _read_lines(pieces, where)


def _read_lines(pieces: Iterable[str], where: str) -> Iterator[Record]:
    errors = RowErrors(where, "every line must be a JSON object")
    for number, line in enumerate(split_lines(pieces, where), start=1):
        if not line.strip():
            continue
        try:
            record = _as_record(DECODER.decode(line))
        except (ValueError, RecursionError) as error:
            errors.add(number, _describe(error))
        else:
            yield number, record
    errors.raise_any()


def _read_array(pieces: Iterable[str], where: str) -> Iterator[Record]:
    text, position, number, state = "", 0, 0, "start"
    for piece in itertools.chain(pieces, [""]):  # the last one ends the text
        text, position = text[position:] + piece, 0
        while (position := SPACE.match(text, position).end()) < len(text):  # type: ignore[union-attr]
            character = text[position]
            if state == "start":  # the text begins with [
                state, position = "first", position + 1
            elif character == "]" and state in ("first", "next"):
                state, position = "end", position + 1
            elif character == "," and state == "next":
                state, position = "element", position + 1
            elif state in ("first", "element"):
                try:
                    value, position = DECODER.raw_decode(text, position)
                    record = _as_record(value)
                except (ValueError, RecursionError) as error:
                    if piece and len(text) - position <= MAX_LINE and isinstance(error, json.JSONDecodeError):
                        break  # the element may end in the next piece
                    raise _not_an_array(f"{where}: element {number + 1}: {_describe(error)}") from error
                number, state = number + 1, "next"
                yield number, record
            else:
                raise _not_an_array(f"{where}: {character!r} after element {number}")
    if state != "end":
        raise _not_an_array(f"{where}: the array does not end")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


DECODER = json.JSONDecoder(parse_int=_integer)


def _as_record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    if len(value) > MAX_COLUMNS:
        raise ValueError(f"{len(value):,} fields; at most {MAX_COLUMNS:,} are allowed")
    return value


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)


def _not_an_array(message: str) -> ColakitError:
    return ColakitError(message, hint="The file must be one JSON array of objects, or one object a line.")
