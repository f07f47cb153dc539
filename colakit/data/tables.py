"""One reader for all tables: TSV, CSV, JSON, Parquet and datasets of the hub, in bounded memory."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePath
from typing import IO, Any, Literal, NamedTuple

from colakit.config.data import DataSettings
from colakit.data.columnar import HubSplit, open_parquet
from colakit.data.delimited import MAX_COLUMNS, Fields, detect_delimiter, read_rows, read_text, split_lines
from colakit.data.json_records import Record, read_json
from colakit.data.row_errors import RowErrors
from colakit.errors import ColakitError, did_you_mean
from colakit.utils.documents import check_text
from colakit.utils.unpacking import DECODERS

Format = Literal["text", "tsv", "csv", "json", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
WORKBOOKS = (".xlsx", ".xls", ".ods")
COLA_COLUMNS = ("source", "label", "mark", "sentence")  # of CoLA's files, which have no header
TEST_HEADERS = (["index", "sentence"], ["id", "sentence"])  # of GLUE's and Kaggle's test set of CoLA


class Reading(NamedTuple):
    """How text tables are read; see the settings of `data`."""

    delimiter: str | None = None
    quoting: str = "auto"
    encoding: str = "utf-8"

    @classmethod
    def of(cls, data: DataSettings) -> Reading:
        """Return the settings' part."""
        return cls(data.delimiter, data.quoting, data.encoding)


AS_PANDAS = Reading()


@dataclass
class Table:
    """A table that is being read.

    Attributes:
        where: its file, for messages.
        columns: their names; of JSON, the names of the first object.
        rows: numbered rows, values by column name.
        kind: format of the file; `text` for a sentence a line; None for a dataset of the hub.
        layout: `cola` or `test` for files of CoLA, GLUE and Kaggle; else `named`.
        delimiter, quoted: of TSV and CSV.
        schema: Arrow schema of Parquet and of a dataset of the hub.
        class_names: column -> names of its classes in order, if the file has them.
    """

    where: str
    columns: tuple[str, ...]
    rows: Iterator[Record]
    kind: Format | None
    layout: Literal["cola", "test", "named"] = "named"
    delimiter: str = "\t"
    quoted: bool = False
    schema: Any = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_quoted: int = field(default=0, init=False)  # texts that `text` returned with quotes around them
    num_multiline: int = field(default=0, init=False)

    @property
    def is_delimited(self) -> bool:
        """Whether it is TSV or CSV."""
        return self.kind in ("tsv", "csv")

    @property
    def unit(self) -> str:
        """What the numbers of the rows count."""
        return "line" if self.schema is None else "row"

    def errors(self, rule: str) -> RowErrors:
        """Return an empty list of errors of its rows."""
        return RowErrors(self.where, rule, unit=self.unit)

    def require(self, name: str, setting: str) -> str:
        """Return the column `name`; raise `ColakitError` if the table does not have it."""
        if name not in self.columns:
            has = ", ".join(self.columns)
            raise ColakitError(
                f"{self.where}: no column {name!r} (has {has if len(has) <= 200 else has[:200] + '…'})."
                f"{did_you_mean(name, self.columns[:50])}",
                hint=f"Name the column: --set {setting}=NAME",
            )
        return name

    def text(self, row: Mapping[str, Any], column: str) -> str:
        """Return a cell of the column of texts; raise `ValueError` if it is no text."""
        if column not in row:
            raise ValueError(f"no {column!r}")
        text = cell_text(row[column])
        if self.is_delimited:
            if not self.quoted and len(text) > 1 and text[0] == text[-1] == '"':
                self.num_quoted += '"' not in text[1:-1].replace('""', "")
            elif self.quoted and "\n" in text:
                self.num_multiline += 1
        return text

    def with_texts(self, column: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each row with its text; raise `ColakitError` for a row without one."""
        for number, row in self.rows:
            try:
                yield row, self.text(row, column)
            except ValueError as error:
                raise ColakitError(
                    f"{self.where}:{number}: {error}; every {self.unit} must have a text in {column!r}",
                    hint="Correct it, or name another column: --set data.text_column=NAME",
                ) from error

    def notes(self) -> list[str]:
        """Return what the user should know about the rows that were read."""
        notes = []
        if self.is_delimited and self.delimiter != ("," if self.kind == "csv" else "\t"):
            notes.append(f"{self.where}: columns are separated by {self.delimiter!r}")
        if self.num_quoted:
            notes.append(
                f"{self.where}: {self.num_quoted:,} texts look quoted, and their quotes are kept; "
                "--set data.quoting=minimal removes them"
            )
        if self.num_multiline:
            notes.append(
                f"{self.where}: {self.num_multiline:,} quoted texts span several lines; "
                "--set data.quoting=none if quotes are text in this file"
            )
        return notes


def table_format(name: str) -> Format | None:
    """Return the format that a file's name stands for, packed or not; None for another name."""
    path = PurePath(name.lower())
    return FORMATS.get(path.with_suffix("").suffix if path.suffix in DECODERS else path.suffix)


def refuse_workbook(name: str) -> None:
    """Raise `ColakitError` if a file's name is that of a workbook of Excel or LibreOffice."""
    if PurePath(name.lower()).suffix in WORKBOOKS:
        raise ColakitError(
            f"{name}: a workbook is not read; tables are TSV, CSV, JSON or Parquet",
            hint="Save its sheet as CSV UTF-8.",
        )


def cell_text(value: Any) -> str:
    """Return a cell as text; a missing one is empty, and `1`, `1.0` and `True` stay different.

    Raises:
        ValueError: if it is neither text, number nor boolean, or cannot be written as UTF-8.
    """
    if isinstance(value, str):
        check_text(value)
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise ValueError(f"a {type(value).__name__}, not text")


@contextlib.contextmanager
def open_table(
    file: IO[bytes], where: str, kind: Format, reading: Reading, text_column: str | None
) -> Iterator[Table]:
    """Yield the table in an open file.

    Args:
        text_column: name of a column, if one is known; it may tell the delimiter and the layout.

    Raises:
        ColakitError: also while the rows are read: if the file is empty or malformed.
    """
    if kind != "parquet":
        pieces = read_text(file, where, reading.encoding)
        yield read_text_table(pieces, where, kind, reading, text_column)
        return
    with open_parquet(file, where) as (schema, rows):
        if len(schema.names) > MAX_COLUMNS:
            raise ColakitError(
                f"{where}: {len(schema.names):,} columns; at most {MAX_COLUMNS:,} are allowed",
                hint="Remove the columns that are not needed.",
            )
        yield Table(where, tuple(schema.names), rows, kind, schema=schema)


def read_text_table(
    pieces: Iterator[str], where: str, kind: Format, reading: Reading, text_column: str | None
) -> Table:
    """Return the table in a text, given in pieces; see `open_table`."""
    if kind in ("tsv", "csv"):
        return _read_delimited(split_lines(pieces, where), where, kind, reading, text_column)
    rows = read_json(pieces, where)
    if (first := next(rows, None)) is None:
        raise empty_file(where)
    return Table(where, tuple(first[1]), chain([first], rows), kind)


def hub_table(name: str, split: HubSplit) -> Table:
    """Return a split of the hub as a table."""
    columns = tuple(split.schema.names)
    return Table(name, columns, split.rows, None, schema=split.schema, class_names=split.class_names)


def empty_file(where: str, problem: str = "is empty") -> ColakitError:
    """Return the error for a file without sentences."""
    return ColakitError(f"{where}: {problem}", hint="A split needs at least one sentence.")


def _read_delimited(
    lines: Iterator[str], where: str, kind: Format, reading: Reading, text_column: str | None
) -> Table:
    begin = []
    for line in lines:
        begin.append(line)
        if line.strip():
            break
    if not begin or not begin[-1].strip():
        raise empty_file(where)
    lines, first = chain(begin, lines), begin[-1]
    names = first.rstrip("\r\n").split("\t")
    layout: Literal["cola", "test", "named"] = "named"
    if kind == "csv" or reading.delimiter not in (None, "\t"):
        pass  # not the files of CoLA, GLUE and Kaggle
    elif [name.lower() for name in names] in TEST_HEADERS:
        layout = "test"
    elif len(names) == len(COLA_COLUMNS) and names[1] in ("0", "1") and text_column not in names:
        layout = "cola"
    quoted = reading.quoting == "minimal" or (reading.quoting == "auto" and layout == "named")
    delimiter = "\t"
    if layout == "named":
        delimiter = reading.delimiter or _delimiter(first, kind, text_column, names)
    rows = read_rows(lines, where, delimiter, quoted=quoted, skip_blank=layout == "named")
    columns = COLA_COLUMNS if layout == "cola" else unique_names(next(rows)[1])
    return Table(where, columns, _by_name(rows, columns, where), kind, layout, delimiter, quoted)


def _delimiter(first: str, kind: Format, text_column: str | None, names: Sequence[str]) -> str:
    if kind == "csv":
        return detect_delimiter(first, ",", text_column)
    return "\t" if text_column is None or text_column in names else detect_delimiter(first, "\t", text_column)


def _by_name(rows: Iterator[Fields], columns: Sequence[str], where: str) -> Iterator[Record]:
    widths = RowErrors(where, f"every row must have {len(columns)} columns")
    for number, fields in rows:
        if len(fields) == len(columns):
            yield number, dict(zip(columns, fields, strict=True))
        else:
            widths.add(number, f"{len(fields)} columns")
    widths.raise_any()


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns as pandas makes them: `Unnamed: 2` for an empty one, `a.1` for a second `a`."""
    unique = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    counts: Counter[str] = Counter()
    for i in sorted(range(len(names)), key=lambda i: not names[i]):  # given names first
        name = unique[i]
        count = counts[name]
        while count:
            counts[unique[i]] = count + 1
            name = f"{unique[i]}.{count}"
            count = count + 1 if name in unique else counts[name]
        unique[i] = name
        counts[name] = 1
    return tuple(unique)
