"""Cases of pairs, annotations, tables and settings for `hostile.py`, derived from their schemas.

A case has a valid document with values replaced at any node: other types, limits of the schema and values
beyond, depth, encoding. Bytes are then left, flipped, cut or packed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_schema import TEARS, TEXTS, VALUES, tear
from hypothesis import strategies as st

from colakit.config.resolve import resolve
from colakit.config.settings import leaf_fields
from colakit.data.annotations import DESCRIPTIVE, MAX_ROWS, read_annotations
from colakit.data.corpora import MAX_LABELS, load_corpus
from colakit.data.delimited import MAX_COLUMNS
from colakit.data.labelled_rows import MAX_LABEL, Columns
from colakit.data.minimal_pairs import MAX_FIELDS, MAX_LINE_BYTES, PairRecord, group_pairs, read_pairs
from colakit.errors import ColakitError

Files = dict[str, bytes]
Cases = st.SearchStrategy[Files]

DEPTHS = st.sampled_from([50, 1000, 10_000]).map(lambda depth: "[" * depth + "]" * depth)
DIGITS = st.sampled_from(["9" * 5000, "0x" + "f" * 5000, "1:" * 2000 + "1", "1e" + "9" * 50, "-0", "1_0"])


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Return a line of pairs: fields of `PairRecord` and others, some replaced, removed or nested deeply."""
    record: dict[str, Any] = dict.fromkeys(PairRecord.model_fields, "The cat sleeps.")
    record |= draw(st.dictionaries(TEXTS, VALUES, max_size=2))
    for name in draw(st.lists(st.sampled_from(list(record)), max_size=2)):
        record[name] = draw(VALUES)
    if draw(st.integers(0, 9)) == 0:
        record |= {
            f"field {i}": i for i in range(draw(st.sampled_from([MAX_FIELDS - 5, 2 * MAX_FIELDS, 20_000])))
        }
    line = json_text(record)
    if draw(st.integers(0, 9)) == 0:
        line = line[:-1] + f', "n": {draw(DEPTHS | DIGITS)}}}'
    return line.encode()


VALID_PAIR = json_text(dict.fromkeys(PairRecord.model_fields, "The cat sleeps.")).encode()


@st.composite
def pair_cases(draw: st.DrawFn) -> Files:
    raw = b"\n".join(draw(st.lists(records(), min_size=1, max_size=4)))
    raw = tear(raw, draw(TEARS))
    if draw(st.integers(0, 9)) == 0:
        raw += draw(st.sampled_from([b"\n", b" ", b"x\n"])) * draw(
            st.sampled_from([5000, 2 * MAX_LINE_BYTES])
        )
    ending, pack = draw(st.sampled_from([("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]))
    return {f"a.jsonl{ending}": tear(pack(raw) * draw(st.sampled_from([1, 1, 1, 2])), draw(TEARS))}


def read_pair_file(folder: Path) -> object:
    return group_pairs(read_pairs(sorted(folder.iterdir())))


CELLS = st.sampled_from(["0", "1", "", "2", "yes", "\x1b[31m", "[/x]", '"', "The cat sleeps.", "\ufeff", "é"])


@st.composite
def annotation_cases(draw: st.DrawFn) -> Files:
    """Return a table of the described columns and features, with wrong cells, widths and sizes."""
    count = draw(st.sampled_from([1, 2, MAX_COLUMNS - len(DESCRIPTIVE), MAX_COLUMNS, 20 * MAX_COLUMNS]))
    names = [*draw(st.permutations(DESCRIPTIVE)), *(f"feature {i}" for i in range(count))]
    if draw(st.booleans()):
        names[draw(st.integers(0, min(9, len(names) - 1)))] = draw(CELLS)
    row = ["The cat sleeps."] * len(DESCRIPTIVE) + ["1"] * count
    rows = [list(row) for _ in range(draw(st.integers(0, 3)))]
    for cells in rows[1:]:
        cells[draw(st.integers(0, min(9, len(cells) - 1)))] = draw(CELLS)
    separator, ending = draw(st.sampled_from([("\t", "tsv"), (",", "csv")]))
    lines = [separator.join(cells) for cells in [names, *rows]]
    if draw(st.integers(0, 19)) == 0:
        lines += [separator.join(row[: len(DESCRIPTIVE) + 1])] * (MAX_ROWS + 1)
    return {f"marks.{ending}": tear("\n".join(lines).encode(), draw(TEARS))}


def read_marks(folder: Path) -> object:
    return read_annotations(next(folder.iterdir()))


@st.composite
def table_cases(draw: st.DrawFn) -> Files:
    """Return a table with a text and a label column, with odd labels, widths and numbers of labels."""
    header = ["text", "label", *draw(st.lists(CELLS, max_size=2))]
    rows = [["The cat sleeps.", draw(CELLS | st.just("L" * (MAX_LABEL + 1))), *header[2:]] for _ in range(3)]
    if draw(st.integers(0, 9)) == 0:
        rows += [
            ["a", f"label {i}", *header[2:]] for i in range(draw(st.sampled_from([500, 3 * MAX_LABELS])))
        ]
    if draw(st.integers(0, 9)) == 0:
        rows[0] += [""] * draw(st.sampled_from([1, 3 * MAX_COLUMNS, 10**6]))
    separator, ending = draw(st.sampled_from([("\t", "tsv"), (",", "csv")]))
    text = "\n".join(separator.join(cells) for cells in [header, *rows])
    return {f"own.{ending}": tear(text.encode(), draw(TEARS))}


def read_table(folder: Path) -> object:
    return load_corpus(files={"train": next(folder.iterdir())}, columns=Columns("text", "label"))


def limits(field: Any) -> list[Any]:
    """Return values at and beyond the bounds of a setting."""
    bounds = [
        getattr(rule, name)
        for rule in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(rule, name)
    ]
    return [field.default, *(bound + step for bound in bounds for step in (-1, 0, 1))]


SETTINGS = dict(leaf_fields())


@st.composite
def assignments(draw: st.DrawFn) -> tuple[str, str]:
    """Return a setting and a value in YAML."""
    key = draw(st.sampled_from(sorted(SETTINGS)))
    fitting = st.sampled_from(limits(SETTINGS[key])).map(lambda value: json.dumps(value, default=list))
    return key, draw(fitting | VALUES.map(json_text) | DEPTHS | DIGITS | TEXTS)


@st.composite
def settings_cases(draw: st.DrawFn) -> Files:
    """Return a YAML file of some settings, and the same as text for `--set` and the environment."""
    chosen = draw(st.lists(assignments(), min_size=1, max_size=3))
    tree: dict[str, list[str]] = {}
    for key, value in chosen:
        section, _, name = key.rpartition(".")
        tree.setdefault(section, []).append(f"{name}: {value}")
    lines = [
        f"{section}: {{{', '.join(items)}}}" if section else "\n".join(items)
        for section, items in tree.items()
    ]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    pairs = json_text(chosen).encode()
    return {"settings.yaml": tear(raw, draw(TEARS)), "assignments.json": pairs}


def read_settings(folder: Path) -> object:
    """Resolve the settings from every source; return the result of one that accepts them."""
    chosen = json.loads((folder / "assignments.json").read_bytes())
    sources: list[dict[str, Any]] = [
        {"assignments": [f"{key}={value}" for key, value in chosen]},
        {"environment": {f"COLAKIT_{key.upper().replace('.', '__')}": value for key, value in chosen}},
        {"flags": {key: ("--flag", value) for key, value in chosen}},
    ]
    for source in sources:
        with contextlib.suppress(ColakitError):
            resolve(**{"environment": {}, **source})
    return resolve(config=folder / "settings.yaml", environment={})


DATA_READERS: dict[str, tuple[Callable[[], Cases], Callable[[Path], object]]] = {
    "pairs by schema": (lambda: st.just({"a.jsonl": VALID_PAIR}) | pair_cases(), read_pair_file),
    "annotations by schema": (annotation_cases, read_marks),
    "tables by schema": (table_cases, read_table),
    "settings by schema": (settings_cases, read_settings),
}
