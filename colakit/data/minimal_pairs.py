"""Minimal pairs from JSON-lines files (plain, gzip or xz), and grouping by their fields.

A line is an object with `sentence_good`, `sentence_bad` and any further fields.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from colakit.data.tables import RowErrors
from colakit.errors import ColakitError, did_you_mean

GOOD, BAD = "sentence_good", "sentence_bad"
PACKED = (".gz", ".xz")
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
BROKEN_FILE = (OSError, EOFError, zlib.error, lzma.LZMAError)
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
        matches = sorted(filter(_is_pair_file, path.iterdir())) if path.is_dir() else [path]
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


def _is_pair_file(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and not path.name.startswith(".") and path.is_file()


def read_pairs(files: Sequence[Path]) -> list[MinimalPair]:
    """Return the pairs of all files, in order.

    Raises:
        ColakitError: if a file is empty, too large or malformed; names the file and line.
    """
    names = [file.name.removesuffix(file.suffix if file.suffix in PACKED else "") for file in files]
    names = [name.removesuffix(".jsonl") for name in names]
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
    try:
        with _open(path) as file:
            number = size = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(raw)
                for unit, length, limit in (
                    ("line is longer", len(raw), MAX_LINE_BYTES),
                    ("file is larger", size, MAX_FILE_BYTES),
                ):
                    if length > limit:
                        raise ColakitError(
                            f"{path}:{number}: the {unit} than {limit >> 20} MiB",
                            hint="Is this a file of JSON lines, one pair a line?",
                        )
                if raw.strip():
                    yield number, raw
    except BROKEN_FILE as error:
        reason = getattr(error, "strerror", None) or error
        raise ColakitError(f"{path}: cannot be read ({reason})", hint="Is the file complete?") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


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
        is_text = {name: all(isinstance(pair.fields.get(name, ""), str) for pair in pairs) for name in fields}
        return _suitable({name: _groups(pairs, name) for name in fields if is_text[name]})
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


def _suitable(fields: Mapping[str, list[str]]) -> dict[str, list[str]]:
    chosen: dict[tuple[int, ...], str] = {}  # partition of the pairs -> first field with it
    for name, groups in fields.items():
        numbers: dict[str, int] = {}
        split = tuple(numbers.setdefault(group, len(numbers)) for group in groups)
        if 2 <= len(numbers) <= min(MAX_GROUPS, len(groups) // 2):
            chosen.setdefault(split, name)
    return {name: fields[name] for name in chosen.values()}
