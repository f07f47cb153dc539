"""Files of minimal pairs: formats, errors and groups."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pairs import draw_pairs, write_pairs

from colakit.data.minimal_pairs import (
    ABSENT,
    MAX_FIELDS,
    MAX_LINE_BYTES,
    MinimalPair,
    find_pair_files,
    group_pairs,
    read_pairs,
)
from colakit.errors import ColakitError

Run = Callable[..., tuple[int, str, str]]


def test_packed_files_and_folders_hold_the_same_pairs(tmp_path: Path) -> None:
    lines = draw_pairs(12)
    folder = tmp_path / "suite"
    folder.mkdir()
    write_pairs(folder / "b.jsonl.xz", lines[8:])
    write_pairs(folder / "a.jsonl", lines[:4])
    write_pairs(folder / "a2.jsonl.gz", lines[4:8])
    (folder / "README.md").write_text("not pairs")
    (folder / "._a.jsonl").write_bytes(b"\0\1")  # such as a Mac leaves
    files = find_pair_files([folder])
    assert [file.name for file in files] == ["a.jsonl", "a2.jsonl.gz", "b.jsonl.xz"]
    pairs = read_pairs(files)
    assert [pair.good for pair in pairs] == [line["sentence_good"] for line in lines]
    assert [pair.fields["file"] for pair in pairs] == ["a"] * 4 + ["a2"] * 4 + ["b"] * 4
    alone = read_pairs([folder / "a.jsonl"])
    assert "file" not in alone[0].fields
    assert alone[0].fields["pairID"] == "0"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "one/x.jsonl", tmp_path / "two/x.jsonl"]
    for path in paths:
        path.parent.mkdir()
        write_pairs(path, draw_pairs(2))
    assert {pair.fields["file"] for pair in read_pairs(paths)} == {str(path) for path in paths}


def test_line_ends_marks_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    line = '{"sentence_good": "Das ist s\u00fc\u00df.\u2028", "sentence_bad": "Das s\u00fc\u00df ist."}'
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}".encode())
    pairs = read_pairs([tmp_path / "p.jsonl"])
    assert [pair.good for pair in pairs] == ["Das ist s\u00fc\u00df.\u2028"] * 2


OK = b'{"sentence_good": "a b", "sentence_bad": "b a"}\n'
BAD_LINES = {
    "not JSON": (b"a b\tb a\n", "line 2: not JSON (expected value at column 1)"),
    "torn": (b'{"sentence_good": "a', "line 2: not JSON (EOF while parsing a string"),
    "a list": (b'["a b", "b a"]\n', "line 2: must be an object"),
    "no bad": (b'{"sentence_good": "a b"}\n', "line 2: sentence_bad is missing"),
    "no good": (b'{"sentence_bad": "a b"}\n', "line 2: sentence_good is missing"),
    "a number": (
        b'{"sentence_good": 3, "sentence_bad": "b"}\n',
        "sentence_good: must be text (got 3)",
    ),
    "null": (
        b'{"sentence_good": "a", "sentence_bad": null}\n',
        "sentence_bad: must be text (got None)",
    ),
    "blank": (
        b'{"sentence_good": "a", "sentence_bad": " "}\n',
        "line 2: sentence_bad: must contain text and no NUL (got ' ')",
    ),
    "not UTF-8": (
        b'{"sentence_good": "\xff", "sentence_bad": "b"}\n',
        "line 2: not UTF-8 at byte 19",
    ),
    "half a pair": (
        rb'{"sentence_good": "\ud800", "sentence_bad": "b"}',
        "not JSON (unexpected end of hex escape at column 26)",
    ),
    "nested": (b"[" * 100_000 + b"\n", "nested more than 32 levels deep"),
    "a long number": (b'{"n": ' + b"9" * 5000 + b"}\n", "a number has more than 40 digits"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_faulty_line_is_named(name: str, tmp_path: Path, colakit: Run) -> None:
    raw, expected = BAD_LINES[name]
    (tmp_path / "pairs.jsonl").write_bytes(OK + raw)
    code, _, err = colakit("evaluate", "--pairs", tmp_path / "pairs.jsonl")
    assert code == 2
    assert "pairs.jsonl:2: every line must be a JSON object with sentence_good and sentence_bad" in err
    assert expected in err
    assert "Traceback" not in err


def test_all_faulty_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(OK + b"x\n" * 7)
    with pytest.raises(ColakitError, match=r"7 invalid lines: line 2: .*; and 2 more"):
        read_pairs([tmp_path / "pairs.jsonl"])


@pytest.mark.parametrize(
    ("file", "raw", "expected"),
    [
        ("empty.jsonl", b"", "empty.jsonl: is empty"),
        ("blank.jsonl", b"\n \n", "blank.jsonl: is empty"),
        ("long.jsonl", OK + b" " * (MAX_LINE_BYTES + 1), "long.jsonl:2: the line is longer than 1 MiB"),
        ("torn.jsonl.gz", gzip.compress(OK * 99, mtime=0)[:-20], "torn.jsonl.gz: cannot be read"),
        ("not.jsonl.gz", OK, "not.jsonl.gz: cannot be read"),
        ("torn.jsonl.xz", lzma.compress(OK * 99)[:-20], "torn.jsonl.xz: cannot be read"),
        ("not.jsonl.xz", OK, "not.jsonl.xz: cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(("l", "z")) else "",
)
def test_a_faulty_file_is_named(file: str, raw: bytes, expected: str, tmp_path: Path, colakit: Run) -> None:
    (tmp_path / file).write_bytes(raw)
    code, _, err = colakit("evaluate", "--pairs", tmp_path / file)
    assert code == 2
    assert expected in err
    assert "hint:" in err


@pytest.mark.parametrize("ending", ["gz", "xz"])
@pytest.mark.parametrize("line", [b"\n", OK], ids=["blank", "valid"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    line: bytes, ending: str, tmp_path: Path
) -> None:
    pack = {"gz": gzip.compress, "xz": lzma.compress}[ending]
    (tmp_path / f"bomb.jsonl.{ending}").write_bytes(pack(line * (2**26 // len(line))))
    with pytest.raises(
        ColakitError, match=r"unpacks to more than \d+ MiB, 100 times its size|more than 500,000 lines"
    ):
        read_pairs([tmp_path / f"bomb.jsonl.{ending}"])


def test_lines_and_fields_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.jsonl"
    fields = ", ".join(f'"f{i}": 1' for i in range(MAX_FIELDS + 1))
    path.write_bytes(OK + b'{"sentence_good": "a", "sentence_bad": "b", ' + fields.encode() + b"}")
    with pytest.raises(ColakitError, match=rf"pairs\.jsonl:2: more than {MAX_FIELDS} different fields"):
        read_pairs([path])
    monkeypatch.setattr("colakit.data.minimal_pairs.MAX_LINES", 3)
    path.write_bytes(b"\n\n" + OK * 2)
    with pytest.raises(ColakitError, match=r"pairs\.jsonl:4: the file has more than 3 lines"):
        read_pairs([path])


# -- groups


def pair(**fields: Any) -> MinimalPair:
    return MinimalPair("a b", "b a", fields)


def test_fields_that_make_groups_are_found() -> None:
    pairs = [MinimalPair("a b", "b a", line) for line in draw_pairs()]
    groups = group_pairs(pairs)
    assert list(groups) == ["UID", "field"]  # not the prefixes, numbers and booleans, nor the sentences
    assert groups["field"][:2] == ["morphology", "syntax"]


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["x"] * 6, False),  # one group is no grouping
        (["x", "x", "x", "x", "x", "y"], True),
        (["x", "x", "y", "y", "z", "z"], True),
        (["x", "x", "y", "y", "z", "w"], False),  # not two pairs a group
        ([1, 1, 1, 2, 2, 2], False),
        ([str(i // 2) for i in range(200)], True),
        ([str(i // 2) for i in range(202)], False),
    ],
)
def test_a_field_groups_where_pairs_share_few_texts(values: list[Any], groups: bool) -> None:
    assert bool(group_pairs([pair(f=value) for value in values])) is groups


def test_a_field_that_repeats_a_partition_is_omitted_unless_named() -> None:
    pairs = [pair(file=f"f{i // 3}", UID=f"u{i // 3}", half="ab"[i % 2]) for i in range(12)]
    assert list(group_pairs(pairs)) == ["UID", "half"]
    assert list(group_pairs(pairs, ["file", "UID"])) == ["file", "UID"]


def test_pairs_without_a_field_are_a_group() -> None:
    pairs = [pair(UID="x"), pair(UID="x"), pair(), pair()]
    assert group_pairs(pairs)["UID"] == ["x", "x", ABSENT, ABSENT]


def test_any_named_field_groups() -> None:
    assert group_pairs([pair(n=1), pair(n=True), pair(n=[2])], ["n"]) == {"n": ["1", "true", "[2]"]}
    with pytest.raises(ColakitError, match=r"no pair has a field 'UDI'\. Did you mean UID\?"):
        group_pairs([pair(UID="x")], ["UDI"])
