"""Sentences of a file: lines of text, or one column of a table."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from colakit.data.columnar import HUB_PREFIX, open_hub
from colakit.data.delimited import DELIMITERS, read_text, split_lines
from colakit.data.tables import (
    TEST_HEADERS,
    Format,
    Reading,
    Table,
    hub_table,
    open_table,
    read_text_table,
    refuse_workbook,
    table_format,
)
from colakit.errors import ColakitError
from colakit.utils.unpacking import open_unpacked

MAX_LINE = 2**26  # characters of a sentence on a line
SENTENCE = "sentence"  # column of a text


@contextlib.contextmanager
def open_sentences(file: str | None, reading: Reading, text_column: str | None) -> Iterator[Table]:
    """Open a table, or a text with a sentence a line as a table of one column.

    The name of a file tells its format. Standard input and other files are tables if their first line is a
    JSON object, the header of GLUE's or Kaggle's test set, or a header with `text_column`.

    Args:
        file: None or `-` reads standard input; `hf:NAME:SPLIT` is a dataset of the hub.
    """
    where = "stdin" if file is None or file == "-" else file
    if where.startswith(HUB_PREFIX):
        splits = open_hub(where)
        if len(splits) > 1:
            raise ColakitError(
                f"{where}: the dataset has the splits {', '.join(splits)}",
                hint=f"Name one of them: {where}:{next(iter(splits))}",
            )
        yield hub_table(where, next(iter(splits.values())))
        return
    refuse_workbook(where)
    opened = contextlib.nullcontext(sys.stdin.buffer) if where == "stdin" else open_unpacked(Path(where))
    with opened as stream:
        if kind := table_format(where):
            with open_table(stream, where, kind, reading, text_column) as table:
                yield table
            return
        lines = split_lines(read_text(stream, where, reading.encoding), where, MAX_LINE)
        first = next(lines, "")
        lines = itertools.chain([first], lines) if first else lines
        if kind := _guess_format(first, text_column):
            yield read_text_table(lines, where, kind, reading, text_column)
        else:
            rows = ((number, {SENTENCE: line.rstrip("\r\n")}) for number, line in enumerate(lines, start=1))
            yield Table(where, (SENTENCE,), rows, "text")


def sentence_column(
    table: Table, given: str | None, recorded: str | None, *, setting: str = "data.text_column"
) -> str:
    """Return the column of the sentences.

    Args:
        given: column that the table must have, unless it is a text.
        recorded: column to take if the table has it.
        setting: setting that names the column.
    """
    if table.kind == "text":
        return SENTENCE
    if given is not None:
        return table.require(given, setting)
    if recorded in table.columns:
        return recorded
    if table.layout != "named":
        return table.columns[-1]
    raise ColakitError(
        f"{table.where}: no setting names the column of text (has {', '.join(table.columns)[:200]})",
        hint=f"Name it: --set {setting}=NAME",
    )


def _guess_format(first: str, text_column: str | None) -> Format | None:
    """Return the format of a table that begins with this line; None for a text."""
    line = first.strip()
    if line == "[" or line.startswith("[{"):
        return "json"
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(line)
            return "jsonl"
    if line.lower().split("\t") in TEST_HEADERS:
        return "tsv"
    for delimiter in DELIMITERS if text_column is not None and text_column in line else ():
        names = next(csv.reader([line], delimiter=delimiter), [])
        if len(names) > 1 and text_column in names:
            return "tsv" if delimiter == "\t" else "csv"
    return None
