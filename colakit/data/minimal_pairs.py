"""Minimal pairs from JSON-lines files (plain, gzip or xz), and grouping by their fields.

A line is an object with `sentence_good`, `sentence_bad` and any further fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue

from colakit.data.row_errors import RowErrors
from colakit.errors import ColakitError, did_you_mean
from colakit.utils.documents import Bounds, validate_json
from colakit.utils.unpacking import open_unpacked

GOOD, BAD = "sentence_good", "sentence_bad"
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
MAX_LINE_BYTES = 2**20
MAX_LINES = 500_000  # of a file
MAX_FIELDS = 40  # different names in all files
MAX_GROUPS = 100  # maximum values of a field that is chosen automatically
BOM = b"\xef\xbb\xbf"
ABSENT = "(none)"  # group of pairs without the field


def _check_sentence(text: Any) -> Any:
    if isinstance(text, str) and ("\0" in text or not text.strip()):
        raise ValueError("must contain text and no NUL")
    return text


Sentence = Annotated[str, BeforeValidator(_check_sentence)]


class PairRecord(BaseModel):
    """A line of a file: two sentences and any further fields."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, JsonValue]

    sentence_good: Sentence
    sentence_bad: Sentence


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
    known: dict[str, str] = {}  # one string per name of a field
    for file, name in zip(files, names, strict=True):
        for pair in _read_file(file, known):
            fields = pair.fields if len(files) == 1 else {"file": name, **pair.fields}
            pairs.append(MinimalPair(pair.good, pair.bad, fields))
    return pairs


def _read_file(path: Path, known: dict[str, str]) -> list[MinimalPair]:
    pairs: list[MinimalPair] = []
    errors = RowErrors(str(path), f"every line must be a JSON object with {GOOD} and {BAD}")
    for number, raw in _lines(path):
        try:
            record = validate_json(
                raw.removeprefix(BOM) if number == 1 else raw, PairRecord, Bounds(MAX_LINE_BYTES)
            )
        except ValueError as error:
            errors.add(number, str(error))
            continue
        fields = {known.setdefault(name, name): value for name, value in record.__pydantic_extra__.items()}
        if len(known) > MAX_FIELDS:
            raise ColakitError(
                f"{path}:{number}: more than {MAX_FIELDS} different fields",
                hint="Keep the fields to group by, such as field and UID.",
            )
        pairs.append(MinimalPair(record.sentence_good, record.sentence_bad, fields))
    errors.raise_any()
    if not pairs:
        raise ColakitError(f"{path}: is empty", hint="A file of pairs needs at least one.")
    return pairs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered, non-blank lines."""
    with open_unpacked(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(raw) > MAX_LINE_BYTES or number > MAX_LINES:
                problem = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
                if number > MAX_LINES:
                    problem = f"the file has more than {MAX_LINES:,} lines"
                hint = "Is this a file of JSON lines, one pair a line?"
                raise ColakitError(f"{path}:{number}: {problem}", hint=hint)
            if raw.strip():
                yield number, raw


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
