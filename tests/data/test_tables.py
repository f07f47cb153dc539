"""Rows of TSV and CSV: line endings, error messages and arbitrary bytes."""

from __future__ import annotations

import csv
import io
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.data import delimited, row_errors
from colakit.data.delimited import Fields, read_text, split_lines
from colakit.data.delimited import read_rows as read_rows_of
from colakit.data.row_errors import RowErrors
from colakit.errors import ColakitError

BOM = b"\xef\xbb\xbf"
PLAIN = "ab\t1\t\tThe cat sleeps.\nab\t0\t*\tThe cat sleep.\n"
EXPECTED = [(1, ["ab", "1", "", "The cat sleeps."]), (2, ["ab", "0", "*", "The cat sleep."])]
FORMATS = ("a.tsv", "a.csv")

LAWS = settings(max_examples=300, deadline=None)


def read_file(file: IO[bytes], where: str) -> list[Fields]:
    lines = split_lines(read_text(file, where), where)
    is_csv = where.endswith(".csv")
    return list(read_rows_of(lines, where, "," if is_csv else "\t", quoted=is_csv, skip_blank=is_csv))


def read_rows(raw: bytes, where: str) -> list[Fields]:
    return read_file(io.BytesIO(raw), where)


def in_format(text: str, where: str) -> bytes:
    """Convert tab-separated text to the format of `where`'s suffix."""
    return (text.replace("\t", ",") if where.endswith(".csv") else text).encode()


def rows_or_error(raw: bytes, where: str) -> list[Fields] | ColakitError:
    try:
        return read_rows(raw, where)
    except ColakitError as error:
        return error


@pytest.mark.parametrize("where", FORMATS)
@pytest.mark.parametrize("final", [True, False], ids=["ended", "unended"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "BOM"])
def test_line_ends_and_byte_order_mark_change_nothing(
    where: str, final: bool, end: bytes, mark: bytes
) -> None:
    raw = mark + in_format(PLAIN, where).replace(b"\n", end)
    assert read_rows(raw if final else raw.removesuffix(end), where) == EXPECTED


@pytest.mark.parametrize("where", FORMATS)
@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"], ids=ascii)
def test_only_line_ends_end_a_line(where: str, odd: str) -> None:
    text = PLAIN.replace("The cat", f"The{odd}cat")
    assert [fields[3] for _, fields in read_rows(in_format(text, where), where)] == [
        f"The{odd}cat sleeps.",
        f"The{odd}cat sleep.",
    ]


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "BOM"])
def test_a_nul_is_named_by_its_offset(mark: bytes) -> None:
    raw = mark + "é\n".encode() + b"a\0b"
    with pytest.raises(ColakitError, match=rf"^a\.tsv: a NUL byte at byte {raw.index(0)}\n"):
        read_rows(raw, "a.tsv")


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "BOM"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9t\xe9", b"\xc3", b"\xed\xa0\x80"], ids=repr)
def test_bytes_that_are_not_utf8_are_named_by_their_offset(mark: bytes, bad: bytes) -> None:
    good = mark + "é\n".encode()
    with pytest.raises(ColakitError, match=rf"^a\.tsv: not UTF-8 at byte {len(good)}\n"):
        list(read_text(io.BytesIO(good + bad), "a.tsv"))


@pytest.mark.parametrize(
    "sentence", ['"Quoted," she said.', 'An "open quote.', '"', '""', "'tis", '"a""b"', "a,b;c", "\\", " x "]
)
def test_quotes_in_tsv_are_text_and_rows_are_lines(sentence: str) -> None:
    raw = f"ab\t1\t\t{sentence}\n".encode() * 3
    assert read_rows(raw, "a.tsv") == [(number, ["ab", "1", "", sentence]) for number in (1, 2, 3)]


def test_quoted_csv_fields_hold_commas_quotes_and_line_ends() -> None:
    raw = b'text,label\n"one, ""two""\nthree",yes\n\nfour,no\n'
    rows = read_rows(raw, "a.csv")
    assert [fields for _, fields in rows] == [["text", "label"], ['one, "two"\nthree', "yes"], ["four", "no"]]
    assert [rows[0][0], rows[2][0]] == [1, 5]


@pytest.mark.parametrize(
    ("raw", "line"), [(b'a,b\n"c"d,e\n', 2), (b'a,b\nc,d\n"never closed,e\n', 3)], ids=["stray", "unclosed"]
)
def test_broken_csv_quoting_is_named_by_its_line(raw: bytes, line: int) -> None:
    with pytest.raises(ColakitError, match=rf"^a\.csv:{line}: .*\nFix the quoting\."):
        read_rows(raw, "a.csv")


@pytest.mark.parametrize("where", FORMATS)
def test_a_long_line_is_one_row(where: str) -> None:
    sentence = "ah " * 100_000
    assert read_rows(in_format(f"text\n{sentence}\n", where), where)[1] == (2, [sentence])


@pytest.mark.parametrize("where", FORMATS)
def test_an_empty_file_has_no_rows(where: str) -> None:
    assert read_rows(b"", where) == []


def test_all_errors_are_counted_and_the_first_are_named() -> None:
    faults = RowErrors("a.tsv", "every row must have 2 columns")
    faults.raise_any()  # none yet
    for line in (3, 5, 8, 9, 11, 13, 17):
        faults.add(line, f"{1 if line % 2 else 3} columns")
    with pytest.raises(ColakitError) as caught:
        faults.raise_any()
    message = caught.value.message
    assert message.startswith("a.tsv:3: every row must have 2 columns (7 invalid lines: line 3: 1 columns;")
    assert "line 8: 3 columns" in message
    assert "line 13" not in message
    assert message.endswith("and 2 more)")


def test_a_blank_line_inside_a_tsv_is_a_row() -> None:
    assert read_rows(b"a\tb\n\nc\td\n", "a.tsv") == [(1, ["a", "b"]), (2, [""]), (3, ["c", "d"])]


@LAWS
@given(raw=st.binary(max_size=60) | st.text('ab"\t,\r\n\0é\ufeff\u2028', max_size=40).map(str.encode))
@pytest.mark.parametrize("where", FORMATS)
def test_the_size_of_chunks_changes_nothing(where: str, raw: bytes) -> None:
    whole = rows_or_error(raw, where)
    for size in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(delimited, "CHUNK", size)
            result = rows_or_error(raw, where)
        if isinstance(whole, ColakitError):
            assert isinstance(result, ColakitError)  # which of two errors comes first may differ
        else:
            assert result == whole


def test_an_endless_line_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        count = 0

        def read(self, size: int, /) -> bytes:
            self.count += size
            return b"a" * size

    file = Endless()
    monkeypatch.setattr(delimited, "MAX_LINE", 2**22)
    with pytest.raises(ColakitError, match=r"^a\.tsv:1: a line is longer than 4 Mi characters"):
        read_file(file, "a.tsv")
    assert file.count < 2**23


@LAWS
@given(raw=st.binary(max_size=80) | st.text('ab"\t,\r\n\0é\ufeff', max_size=40).map(str.encode))
@pytest.mark.parametrize("where", FORMATS)
def test_any_bytes_give_rows_or_an_error_that_names_the_file(where: str, raw: bytes) -> None:
    result = rows_or_error(raw, where)
    if isinstance(result, ColakitError):
        assert result.message.startswith(where)
    else:
        numbers = [number for number, _ in result]
        assert numbers == sorted(set(numbers))
        assert all(fields for _, fields in result)


@LAWS
@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0")), min_size=2, max_size=5
        ),
        max_size=6,
    ),
    final=st.booleans(),
)
def test_tsv_cells_round_trip(rows: list[list[str]], final: bool) -> None:
    text = "\n".join("\t".join(fields) for fields in rows) + ("\n" if final and rows else "")
    result = read_rows(BOM + text.encode(), "a.tsv")
    assert result == list(enumerate(rows, start=1))


@LAWS
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=4),
        max_size=5,
    )
)
def test_csv_cells_round_trip(rows: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    result = read_rows(BOM + out.getvalue().encode(), "a.csv")
    assert [fields for _, fields in result] == rows


@pytest.mark.parametrize(
    ("where", "raw"),
    [
        ("a.tsv", b"\t" * 5000),
        ("a.csv", b"," * 5000),
        ("a.tsv", b"\t" * 10_000_000),
        ("a.csv", b'"\n",' * 1_000_000),  # one row of many lines
        ("a.csv", b'"' + b"x\n" * 1_000_000),
    ],
    ids=["columns", "CSV columns", "a line of tabs", "a row of lines", "an open quote"],
)
def test_wide_rows_are_refused(where: str, raw: bytes) -> None:
    with pytest.raises(ColakitError, match=r"columns; at most 1,000 are allowed|longer than 1 Mi characters"):
        read_rows(raw, where)


def test_reading_stops_after_many_invalid_lines() -> None:
    errors = RowErrors("a.tsv", "every row must have 2 columns")
    for line in range(1, row_errors.MAX_ERRORS):
        errors.add(line, "x")
    with pytest.raises(ColakitError, match=r"\(1000 or more invalid lines: line 1: x;"):
        errors.add(row_errors.MAX_ERRORS, "x")
