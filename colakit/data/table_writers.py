"""Writers of tables: TSV, CSV, JSON lines, a JSON array, Parquet, packed or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from colakit.data.tables import Format
from colakit.utils.documents import library_errors
from colakit.utils.extras import import_extra
from colakit.utils.unpacking import import_zstd

Write = Callable[[Sequence[Mapping[str, Any]]], None]
PACKERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda *arguments, **options: import_zstd().open(*arguments, **options),
}


@contextlib.contextmanager
def text_writer(
    out: TextIO, kind: Format, columns: Sequence[str], delimiter: str = "\t", *, quoted: bool = True
) -> Iterator[Write]:
    """Yield a function that writes rows as text.

    Args:
        columns: of TSV and CSV.
        quoted: enclose cells with a delimiter, quote or line end in double quotes; else there must be none.
    """
    if kind == "jsonl":
        yield lambda rows: _write_text(out, "".join(f"{_as_json(row)}\n" for row in rows))
        return
    if kind == "json":
        begin = "[\n"

        def write_elements(rows: Sequence[Mapping[str, Any]]) -> None:
            nonlocal begin
            if rows:
                _write_text(out, begin + ",\n".join(map(_as_json, rows)))
                begin = ",\n"

        yield write_elements
        _write_text(out, "[]\n" if begin == "[\n" else "\n]\n")
        return
    if quoted:
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    else:
        writer = csv.writer(
            out, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n"
        )
    writer.writerow(columns)

    def write_rows(rows: Sequence[Mapping[str, Any]]) -> None:
        writer.writerows([_as_cell(row.get(name)) for name in columns] for row in rows)
        out.flush()

    yield write_rows


@contextlib.contextmanager
def file_writer(
    path: Path,
    kind: Format,
    columns: Sequence[str],
    delimiter: str,
    *,
    quoted: bool,
    ending: str = "",
    schema: Any = None,
) -> Iterator[Write]:
    """Yield a function that writes rows to a file.

    Args:
        ending: `.gz`, `.xz` or `.zst` to pack it.
        schema: Arrow schema of a Parquet file; None takes it from the first rows.
    """
    if kind == "parquet":
        with _parquet_writer(path, schema) as write:
            yield write
        return
    with PACKERS.get(ending.lower(), open)(path, "wt", encoding="utf-8", newline="") as out:
        with text_writer(out, kind, columns, delimiter, quoted=quoted) as write:
            yield write
        out.flush()


@contextlib.contextmanager
def _parquet_writer(path: Path, schema: Any) -> Iterator[Write]:
    arrow, parquet = import_extra("pyarrow", "data"), import_extra("pyarrow.parquet", "data")
    writer: Any = None

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        nonlocal writer
        with library_errors(path):
            table = arrow.Table.from_pylist(list(rows), schema=schema if writer is None else writer.schema)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)

    yield write
    if writer is None:
        write([])
    writer.close()


def _write_text(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()


def _as_json(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


def _as_cell(value: Any) -> Any:
    """Return a value of another format for a cell; lists and the like as JSON."""
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value, default=str)
