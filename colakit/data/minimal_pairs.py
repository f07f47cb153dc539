"""Minimal pairs from JSON-lines files (plain, gzip or xz), and grouping by their fields.

A line is an object with `sentence_good`, `sentence_bad` and any further fields.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colakit.data.tables import RowErrors
from colakit.errors import ColakitError, did_you_mean

GOOD, BAD = "sentence_good", "sentence_bad"
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
MAX_LINE_BYTES = 2**20
MAX_FILE_BYTES = 512 * 2**20  # unpacked
MAX_GROUPS = 100  # maximum values of a field that is chosen automatically
ABSENT = "(none)"  # group of pairs without the field


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable and an unacceptable sentence that differ minimally.

    Attributes:
        fields: other fields of the line, and `file`, the file's name, if several files are read.
    """

    good: str
    bad: str
    fields: Mapping[str, Any]


def find_pair_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files and the pair files of the given folders, sorted by name within a folder.

    Raises:
        ColakitError: if a path does not exist, a folder has no pair files, or a file is named twice.
    """
    files: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if not path.exists():
            raise ColakitError(f"--pairs {path}: file not found", hint="Give a JSON-lines file or a folder.")
        matches = [path]
        if path.is_dir():
            matches = sorted(
                file for ending in ENDINGS for file in path.glob(f"[!.]*{ending}") if file.is_file()
            )
        if not matches:
            raise ColakitError(
                f"--pairs {path}: no file ends in {', '.join(ENDINGS)}",
                hint="Give the folder that holds the files itself; folders below it are not searched.",
            )
        files += matches
    real = [file.resolve() for file in files]
    for position, file in enumerate(files):
        if real[position] in real[:position]:
            raise ColakitError(f"--pairs {file}: is given twice", hint="Give every file once.")
    return files


def read_pairs(files: Sequence[Path]) -> list[MinimalPair]:
    """Return the pairs of all files, in order.

    Raises:
        ColakitError: if a file is empty, too large or malformed; names the file and line.
    """
    names = [re.sub(r"(\.jsonl)?(\.gz|\.xz)?$", "", file.name) for file in files]
    if len(set(names)) < len(names):  # equal names in several folders
        names = [str(file) for file in files]
    pairs: list[MinimalPair] = []
    for file, name in zip(files, names, strict=True):
        for pair in _read_file(file):
            fields = pair.fields if len(files) == 1 else {"file": name, **pair.fields}
            pairs.append(MinimalPair(pair.good, pair.bad, fields))
    return pairs


def _read_file(path: Path) -> list[MinimalPair]:
    pairs: list[MinimalPair] = []
    errors = RowErrors(str(path), f"every line must be a JSON object with {GOOD} and {BAD}")
    for number, raw in _lines(path):
        try:
            pairs.append(_parse(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw))
        except ValueError as error:
            errors.add(number, str(error))
    errors.raise_any()
    if not pairs:
        raise ColakitError(f"{path}: is empty", hint="A file of pairs needs at least one.")
    return pairs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered, non-blank lines."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    size = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                size += len(raw)
                problem = f"line is longer than {MAX_LINE_BYTES >> 20}" if len(raw) > MAX_LINE_BYTES else ""
                problem = f"file is larger than {MAX_FILE_BYTES >> 20}" if size > MAX_FILE_BYTES else problem
                if problem:
                    hint = "Is this a file of JSON lines, one pair a line?"
                    raise ColakitError(f"{path}:{number}: the {problem} MiB", hint=hint)
                if raw.strip():
                    yield number, raw
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ColakitError(f"{path}: cannot be read ({reason})", hint="Is the file complete?") from error


def _parse(raw: bytes) -> MinimalPair:
    """Parse one line; raise `ValueError` with a short reason."""
    try:
        record = json.loads(raw.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError):  # deep nesting, or a number of thousands of digits
        raise ValueError("not JSON that can be read") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    for key in (GOOD, BAD):
        if key not in record:
            raise ValueError(f"no {key}")
        if not isinstance(record[key], str):
            raise ValueError(f"{key} is a {type(record[key]).__name__}, not a string")
        if not record[key].strip():
            raise ValueError(f"{key} is empty")
    return MinimalPair(record.pop(GOOD), record.pop(BAD), record)


def group_pairs(pairs: Sequence[MinimalPair], names: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return field -> group of each pair, for the fields `names` or, without names, all suitable fields.

    Suitable fields have 2 to `MAX_GROUPS` distinct strings, at least two pairs per value on average, and
    another partition of the pairs than earlier fields.

    Raises:
        ColakitError: if no pair has one of the fields `names`.
    """
    fields = list(dict.fromkeys(name for pair in pairs for name in pair.fields))
    fields.sort(key=lambda name: name == "file")  # last: a suite's own field has priority
    if not names:
        chosen: dict[tuple[int, ...], str] = {}  # partition of the pairs -> first field with it
        for name in fields:
            numbers: dict[str, int] = {}
            partition = tuple(numbers.setdefault(group, len(numbers)) for group in _groups(pairs, name))
            is_text = all(isinstance(pair.fields.get(name, ""), str) for pair in pairs)
            if is_text and 2 <= len(numbers) <= min(MAX_GROUPS, len(pairs) // 2):
                chosen.setdefault(partition, name)
        names = list(chosen.values())
    for name in names:
        if name not in fields:
            raise ColakitError(
                f"--group-by: no pair has a field {name!r}.{did_you_mean(name, fields)}",
                hint=None if fields else "These pairs have no fields but the sentences.",
            )
    return {name: _groups(pairs, name) for name in names}


def _groups(pairs: Sequence[MinimalPair], name: str) -> list[str]:
    values = (pair.fields.get(name, ABSENT) for pair in pairs)
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
