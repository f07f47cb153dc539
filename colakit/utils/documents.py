"""Documents that others may have written: JSON files are read, bounded and validated here.

A bound is checked before the work that it limits. What passes is an instance of a pydantic model that the
room of the file defines, so the code that uses it needs no checks of its own.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from colakit.errors import ColakitError, first_line, plain_rule

MAX_DEPTH = 32
MAX_DIGITS = 40  # of a number
SHORT = 2**12  # bytes
SUSPECT = re.compile(rb"\d{%d}|\0|u0000|[\x80-\xff]" % (MAX_DIGITS + 1))
BRANCH = re.compile(r"constrained-|\[.*\]$")  # pydantic's names of the types of a union
DEEPER, SHALLOWER = b"[{", b"]}"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Bounds:
    """Bounds of a document.

    Attributes:
        values: of all levels.
        keys: in all objects; pydantic reports each wrong field of an object, a million in a gigabyte.
    """

    bytes: int = 2**24
    values: int = 2**17
    keys: int = 2**17


BOUNDS = Bounds()


class DocumentError(ColakitError):
    """A document that is not well-formed, too large or not valid; it names file and field."""


class MissingError(DocumentError):
    """A document that does not exist."""


class Document(BaseModel):
    """A document, or a part of one: values have the stated types, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, populate_by_name=True, protected_namespaces=())


def read_document(
    path: Path,
    model: type[M],
    bounds: Bounds = BOUNDS,
    *,
    hint: str | None = None,
) -> M:
    """Return the JSON document in `path` as a `model`.

    Raises:
        DocumentError: if it cannot be read, exceeds a bound or is not valid.
        MissingError: if there is no such file.
    """
    raw = read_bounded(path, bounds.bytes, hint=hint)
    return parse_document(raw, model, str(path), bounds, hint=hint)


def read_bounded(path: Path, max_bytes: int, *, whole: bool = True, hint: str | None = None) -> bytes:
    """Return the content of a regular file of up to `max_bytes`.

    Args:
        whole: False returns the beginning of a longer file.

    Raises:
        DocumentError: if it is longer, or cannot be read.
        MissingError: if there is no such file.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise MissingError(f"{path}: file not found", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DocumentError(f"{path}: cannot be read ({reason})", hint=hint) from error
    if whole and len(raw) > max_bytes:
        raise DocumentError(f"{path}: longer than {max_bytes:,} bytes", hint=hint)
    return raw


def read_text(path: Path, max_bytes: int, *, hint: str | None = None) -> str:
    """Return the text of a UTF-8 file without NUL; errors as in `read_bounded`."""
    raw = read_bounded(path, max_bytes, hint=hint)
    try:
        text = raw.decode("utf-8-sig")
        check_text(text)
    except ValueError as error:
        raise DocumentError(f"{path}: {first_line(error)}", hint=hint) from error
    return text


def parse_document(
    raw: bytes | str,
    model: type[M],
    where: str,
    bounds: Bounds = BOUNDS,
    *,
    hint: str | None = None,
) -> M:
    """Return a JSON document as a `model`.

    Args:
        where: name of the document in messages.

    Raises:
        DocumentError: if it exceeds a bound or is not valid.
    """
    try:
        if isinstance(raw, str):
            raw = raw.encode("utf-8")  # fails on lone surrogates
        return validate_json(raw, model, bounds)
    except ValueError as error:
        raise DocumentError(f"{where}: {error}", hint=hint) from None


def validate_json(raw: bytes, model: type[M], bounds: Bounds = BOUNDS) -> M:
    """Return JSON as a `model`; raise `ValueError` if it exceeds a bound or is not valid."""
    check_json_bounds(raw, bounds)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def check_json_bounds(raw: bytes, bounds: Bounds = BOUNDS) -> None:
    """Raise `ValueError` if parsing JSON would take too much, or if it holds characters that no text has."""
    num_brackets = raw.count(b"[") + raw.count(b"{")
    if len(raw) < SHORT and num_brackets <= MAX_DEPTH and not SUSPECT.search(raw):
        return  # a line of a file of many
    if len(raw) > bounds.bytes:
        raise ValueError(f"longer than {bounds.bytes:,} bytes")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    unescaped = raw.replace(rb"\\", b"")
    if raw.count(b'"') > 4 * bounds.values + 4:  # two of each value and two of each key
        raise ValueError(f"has more than {bounds.values:,} values")
    if b"\0" in raw or rb"\u0000" in unescaped:
        raise ValueError("contains NUL characters")
    outside = b" ".join(unescaped.replace(rb"\"", b"").split(b'"')[::2])  # of strings
    if (items := sum(map(outside.count, (b",", b"[", b"{")))) > bounds.values:
        raise ValueError(f"has about {items:,} values; {bounds.values:,} are allowed")
    if (keys := outside.count(b":")) > bounds.keys:
        raise ValueError(f"has {keys:,} keys; {bounds.keys:,} are allowed")
    depth = 0
    for bracket in outside.translate(None, delete=bytes(set(range(256)) - set(DEEPER + SHALLOWER))):
        depth += 1 if bracket in DEEPER else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    digits = outside.translate(bytes.maketrans(b"123456789", b"0" * 9))
    if b"0" * (MAX_DIGITS + 1) in digits:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")


def validate(value: Any, model: type[M]) -> M:
    """Return plain data as a `model`; raise `ValueError` if it is not valid."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """Return the first fault as text: field, what is allowed, and what the document has."""
    first, *others = error.errors(include_url=False, include_context=False)
    if BRANCH.search(str(first["loc"][-1:])):  # of a union: the fault of the type that the document has
        alike = (each for each in others if each["loc"][0] == first["loc"][0])
        first = next((each for each in alike if not each["type"].endswith("_type")), first)
    field = ".".join(str(part) for part in first["loc"] if not BRANCH.search(str(part)))[:80]
    message = plain_rule(first["msg"]).replace(" at line 1 column ", " at column ")
    match first["type"]:
        case "json_invalid":
            return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field of it"
    is_explained = first["type"] == "value_error" and isinstance(first["input"], (list, dict))
    got = "" if is_explained else f" (got {reprlib.repr(first['input'])[:60]})"
    return f"{field}: {message}{got}" if field else f"{message}{got}"


@contextmanager
def library_errors(where: object, *, hint: str | None = None) -> Iterator[None]:
    """Raise `DocumentError` for whatever a library raises on a damaged file, panics of Rust code included."""
    try:
        yield
    except (ColakitError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no `Exception`
        raise DocumentError(f"{where}: cannot be read ({first_line(error)})", hint=hint) from error


def check_text(text: str) -> None:
    """Raise `ValueError` if `text` has characters that cannot be written: NUL or lone surrogates."""
    if "\0" in text:
        raise ValueError("contains NUL characters")
    text.encode()  # fails on lone surrogates


def check_plain(
    value: Any, *, max_items: int = BOUNDS.values, leaves: type | tuple[type, ...] = ()
) -> list[Any]:
    """Raise `ValueError` unless `value` is plain data within the bounds of a document; return its leaves.

    Shared parts count each time, so structures that repeat or contain themselves are refused.

    Args:
        leaves: types that may occur besides dicts, lists, text, numbers, true, false and null.
    """
    pending, count, others = [(value, 0)], 0, []
    while pending:
        item, depth = pending.pop()
        children: list[Any] = []
        if isinstance(item, dict):
            children = [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            children = [*item]
        elif isinstance(item, str):
            check_text(item)
        elif isinstance(item, int) and item.bit_length() > 128:
            raise ValueError("an integer has too many digits")
        elif leaves and isinstance(item, leaves):
            others.append(item)
        elif not (item is None or isinstance(item, (int, float))):
            raise ValueError(f"contains a {type(item).__name__}; only plain data is allowed")
        count += len(children)
        if count > max_items or depth > MAX_DEPTH:
            raise ValueError(f"has more than {max_items:,} values or {MAX_DEPTH} levels, or contains itself")
        pending += [(child, depth + 1) for child in children]
    return others
