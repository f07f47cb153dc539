"""Minimal pairs: files of JSON lines as suites are published, and the fields that group them.

A line is an object with `sentence_good` and `sentence_bad`; whatever else it holds describes the pair. Files
may be packed with gzip or xz, and a folder stands for all such files in it.
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
MAX_GROUPS = 100  # values of a field that is chosen by itself: more would be a list, not a table
ABSENT = "(none)"  # group of the pairs that lack a field


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in little, of which one is acceptable.

    Attributes:
        fields: what else stood in the line, and under `file`, where there are several, the file's name.
    """

    good: str
    bad: str
    fields: Mapping[str, Any]


def find_pair_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that `paths`, files and folders, stand for; a folder's are sorted by name.

    Raises:
        ColakitError: if a path is not there, a folder holds none, or a file would be read twice.
    """
    files: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if not path.exists():
            raise ColakitError(f"--pairs {path}: not there", hint="Give a file of JSON lines, or a folder.")
        found = sorted(filter(_is_pair_file, path.iterdir())) if path.is_dir() else [path]
        if not found:
            raise ColakitError(
                f"--pairs {path}: holds no file that ends in {', '.join(ENDINGS)}",
                hint="Give the folder that holds the files itself; folders below it are not searched.",
            )
        files += found
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
        ColakitError: if a file is empty, too large, or malformed, naming the file and the line.
    """
    names = [file.name.removesuffix(file.suffix if file.suffix in PACKED else "") for file in files]
    names = [name.removesuffix(".jsonl") for name in names]
    if len(set(names)) < len(names):  # of several folders
        names = [str(file) for file in files]
    pairs: list[MinimalPair] = []
    for file, name in zip(files, names, strict=True):
        for pair in _read_file(file):
            fields = pair.fields if len(files) == 1 else {"file": name, **pair.fields}
            pairs.append(MinimalPair(pair.good, pair.bad, fields))
    return pairs


def _read_file(path: Path) -> list[MinimalPair]:
    pairs: list[MinimalPair] = []
    faults = RowErrors(str(path), f"every line must be a JSON object with {GOOD} and {BAD}")
    for number, raw in _lines(path):
        try:
            pairs.append(_parse(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw))
        except ValueError as error:
            faults.add(number, str(error))
    faults.raise_any()
    if not pairs:
        raise ColakitError(f"{path}: is empty", hint="A file of pairs needs at least one.")
    return pairs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines that are not blank."""
    try:
        with _open(path) as file:
            number = size = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(raw)
                if len(raw) > MAX_LINE_BYTES or size > MAX_FILE_BYTES:
                    what = "line is longer" if len(raw) > MAX_LINE_BYTES else "file is larger"
                    most = MAX_LINE_BYTES if len(raw) > MAX_LINE_BYTES else MAX_FILE_BYTES
                    raise ColakitError(
                        f"{path}:{number}: the {what} than {most >> 20} MiB",
                        hint="Is this a file of JSON lines, one pair a line?",
                    )
                if raw.strip():
                    yield number, raw
    except BROKEN_FILE as error:
        reason = getattr(error, "strerror", None) or error
        raise ColakitError(f"{path}: cannot be read ({reason})", hint="Was it copied whole?") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _parse(raw: bytes) -> MinimalPair:
    """Return the pair of one line; a `ValueError` says in few words why there is none."""
    try:
        record = json.loads(raw.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError):  # brackets in brackets, a number of thousands of digits
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


def group_pairs(pairs: Sequence[MinimalPair], asked: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return field -> the group of each pair, for the fields `asked` for, or else for those that make groups.

    These are the fields whose values are strings, 2 to `MAX_GROUPS` different ones, which two or more pairs
    share on average. So numbers of pairs and parts of sentences are left out, and so is a field that splits
    the pairs just as an earlier one does.

    Raises:
        ColakitError: if no pair has a field that is asked for.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair.fields))
    names.sort(key=lambda name: name == "file")  # last, so that a suite's own field is preferred to it
    if not asked:
        return _that_make_groups({name: _groups(pairs, name) for name in names if _is_text(pairs, name)})
    for name in asked:
        if name not in names:
            raise ColakitError(
                f"--group-by: no pair has a field {name!r}.{did_you_mean(name, names)}",
                hint=None if names else "These pairs have no fields but the sentences.",
            )
    return {name: _groups(pairs, name) for name in asked}


def _is_text(pairs: Sequence[MinimalPair], name: str) -> bool:
    return all(isinstance(pair.fields.get(name, ""), str) for pair in pairs)


def _groups(pairs: Sequence[MinimalPair], name: str) -> list[str]:
    return [_written(pair.fields[name]) if name in pair.fields else ABSENT for pair in pairs]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _that_make_groups(fields: Mapping[str, list[str]]) -> dict[str, list[str]]:
    found: dict[tuple[int, ...], str] = {}  # how a field splits the pairs -> the first that does so
    for name, groups in fields.items():
        numbers: dict[str, int] = {}
        split = tuple(numbers.setdefault(group, len(numbers)) for group in groups)
        if 2 <= len(numbers) <= min(MAX_GROUPS, len(groups) // 2):
            found.setdefault(split, name)
    return {name: fields[name] for name in found.values()}
