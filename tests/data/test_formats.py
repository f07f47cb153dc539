"""Tables of every format: the rows are those of pandas, json and pyarrow, or the file is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.data import delimited
from colakit.data.corpora import load_corpus
from colakit.data.labelled_rows import Columns
from colakit.data.sentences import open_sentences, sentence_column
from colakit.data.tables import AS_PANDAS, Reading, open_table, table_format, unique_names
from colakit.errors import ColakitError
from colakit.utils import extras

TEXT_LABEL = Columns("text", "label")
CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=12)
TRICKY = st.text("ab\"',;|\t\n \u2028é", max_size=8)
# No lone CR: pandas writes it without quotes, and loses a delimiter after a blank line that it ends.
PIECES = st.lists(st.sampled_from([*'ab",;|\t\n é', "\r\n"]), max_size=40).map("".join)
NAMES = st.lists(st.text("abc_ é1", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=4)
DELIMITERS = st.sampled_from([",", ";", "\t", "|"])
NUM_EXAMPLES = 10_000  # of all laws together, in the slow run
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


@st.composite
def frames(draw: st.DrawFn) -> pandas.DataFrame:
    names = draw(NAMES.map(lambda names: list(dict.fromkeys(names))))
    row = st.lists(CELL | TRICKY, min_size=len(names), max_size=len(names))
    return pandas.DataFrame(draw(st.lists(row, min_size=1, max_size=5)), columns=names, dtype=str)


def rows_of(raw: bytes, where: str, reading: Reading = AS_PANDAS) -> list[dict[str, Any]] | ColakitError:
    try:
        kind = table_format(where)
        assert kind is not None
        with open_table(io.BytesIO(raw), where, kind, reading, None) as table:
            return [row for _, row in table.rows]
    except ColakitError as error:
        return error


def as_pandas(raw: bytes, delimiter: str) -> list[dict[str, Any]] | Exception:
    try:
        frame = pandas.read_csv(io.BytesIO(raw), sep=delimiter, dtype=str, keep_default_na=False)
    except Exception as error:
        return error
    return frame.to_dict("records") if isinstance(frame.index, pandas.RangeIndex) else ValueError("an index")


def check_written_frame(frame: pandas.DataFrame, delimiter: str, encoding: str) -> None:
    raw = frame.to_csv(index=False, sep=delimiter).encode(encoding)
    expected = as_pandas(raw.decode(encoding).encode(), delimiter)
    assert rows_of(raw, "a.csv", Reading(delimiter, "minimal", encoding)) == expected


def check_arbitrary_text(text: str, delimiter: str) -> None:
    raw = text.encode()
    ours = rows_of(raw, "a.csv", Reading(delimiter, "minimal"))
    if isinstance(ours, ColakitError):
        assert ours.message.startswith("a.csv")
    else:
        assert ours == as_pandas(raw, delimiter)


def check_json(records: list[dict[str, Any]], is_array: bool, indent: int | None) -> None:
    if is_array:
        text = json.dumps(records, indent=indent, ensure_ascii=bool(indent))
    else:
        text = "\n".join(json.dumps(record) for record in records)
    result = rows_of(text.encode(), "a.json" if is_array else "a.jsonl")
    assert repr(result) == repr(records)  # NaN differs from itself


def check_parquet(table: pyarrow.Table) -> None:
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    assert repr(rows_of(out.getvalue(), "a.parquet")) == repr(table.to_pylist())


RECORDS = st.lists(
    st.dictionaries(CELL, CELL | st.integers() | st.floats() | st.booleans() | st.none(), max_size=4),
    min_size=1,
    max_size=5,
)
ARROW_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": CELL | st.none(),
            "label": st.integers(-(2**40), 2**40) | st.none(),
            "score": st.floats() | st.none(),
            "flag": st.booleans(),
        }
    ),
    min_size=1,
    max_size=5,
)
LAWS: dict[str, tuple[st.SearchStrategy[Any], Callable[..., None]]] = {
    "written": (
        st.tuples(frames(), DELIMITERS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        check_written_frame,
    ),
    "arbitrary": (st.tuples(PIECES, DELIMITERS), check_arbitrary_text),
    "headed": (
        st.tuples(PIECES.map(lambda text: f"a,b\n{text}"), st.just(",")),
        check_arbitrary_text,
    ),
    "json": (st.tuples(RECORDS, st.booleans(), st.sampled_from([None, 1])), check_json),
    "parquet": (st.tuples(ARROW_ROWS.map(pyarrow.Table.from_pylist)), check_parquet),
}


@pytest.mark.parametrize("law", LAWS)
def test_rows_are_those_of_the_reference_reader(law: str) -> None:
    cases, check = LAWS[law]
    settings(max_examples=150, deadline=None)(given(cases)(lambda case: check(*case)))()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_rows_of_ten_thousand_tables_are_those_of_the_reference_reader(law: str) -> None:
    cases, check = LAWS[law]
    size = NUM_EXAMPLES // len(LAWS)
    settings(max_examples=size, deadline=None)(given(cases)(lambda case: check(*case)))()


@pytest.mark.parametrize(
    "names", [["a", "a"], ["", ""], ["a", "a", "a.1"], ["a.1", "a", "a"], ["Unnamed: 0", ""], ["", "a", ""]]
)
def test_columns_are_named_as_pandas_names_them(names: list[str]) -> None:
    raw = ",".join(names) + "\n" + ",".join("x" * len(names))
    assert unique_names(names) == tuple(pandas.read_csv(io.StringIO(raw)).columns)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_delimiter_is_found_or_set(delimiter: str, ending: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["A, b; c", "d|e\tf"], "label": ["x", "y"]})
    path = tmp_path / f"own.{ending}"
    frame.to_csv(path, index=False, sep=delimiter)
    for reading in (AS_PANDAS, Reading(delimiter)):
        corpus = load_corpus(path, columns=TEXT_LABEL, reading=reading)
        assert corpus.split("train").sentences == tuple(frame.text)
    usual = {"csv": ",", "tsv": "\t"}[ending]
    assert [note.split(": ")[1] for note in corpus.notes] == (
        [] if delimiter == usual else [f"columns are separated by {delimiter!r}"]
    )


def written(frame: pandas.DataFrame, ending: str) -> bytes:
    out = io.BytesIO()
    match ending:
        case "csv" | "tsv":
            frame.to_csv(out, index=False, sep="," if ending == "csv" else "\t")
        case "jsonl" | "ndjson":
            frame.to_json(out, orient="records", lines=True)
        case "json":
            frame.to_json(out, orient="records")
        case "parquet":
            frame.to_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "ndjson", "parquet"])
def test_every_format_gives_the_same_corpus(ending: str, packed: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"text": ['He said "no", she\nsaid.', " b\t", "é\u2028"], "label": ["x", "y", "x"]}
    )
    path = tmp_path / f"own.{ending}{packed}"
    path.write_bytes(PACKERS[packed](written(frame, ending)))
    split = load_corpus(path, columns=TEXT_LABEL).split("train")
    assert split.sentences == tuple(frame.text)
    assert split.require_labels().tolist() == [0, 1, 0]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_a_table_of_another_encoding_or_a_damaged_one_is_named(ending: str, tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["one", "two"] * 50, "label": ["x", "y"] * 50})
    raw = written(frame, ending)
    path = tmp_path / f"own.{ending}.gz"
    for damaged in (gzip.compress(raw)[:-9], b"no gzip", gzip.compress(raw[: len(raw) // 2] + b"\xff\xfe")):
        path.write_bytes(damaged)
        with pytest.raises(ColakitError, match=f"^{path}"):
            load_corpus(path, columns=TEXT_LABEL)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "latin-1"])
def test_another_encoding_is_refused_with_the_setting_that_reads_it(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    text = "text,label\nnaïve,x\ncafé,y\n" + ("\x81,x\n" if encoding == "latin-1" else "")
    path.write_bytes(text.encode(encoding))
    with pytest.raises(
        ColakitError, match=r"^.*own\.csv: (not UTF-8 at byte \d+|a NUL byte at byte 1)\n"
    ) as caught:
        load_corpus(path, columns=TEXT_LABEL)
    assert f"--set data.encoding={encoding}" in (caught.value.hint or "")
    split = load_corpus(path, columns=TEXT_LABEL, reading=Reading(encoding=encoding)).split("train")
    assert split.sentences[:2] == ("naïve", "café")


def test_a_table_is_read_as_quoted_and_cola_as_it_is(tmp_path: Path) -> None:
    own, cola = tmp_path / "own.tsv", tmp_path / "cola.tsv"
    own.write_text('text\tlabel\n"He said ""no"" again."\t0\nPlain.\t1\n')
    cola.write_text('a\t1\t\t"He said ""no"" again."\na\t0\t\tPlain.\n')
    assert load_corpus(own, columns=TEXT_LABEL).split("train").sentences[0] == 'He said "no" again.'
    for corpus in (load_corpus(cola), load_corpus(own, columns=TEXT_LABEL, reading=Reading(quoting="none"))):
        assert corpus.split("train").sentences[0] == '"He said ""no"" again."'
        assert "1 texts look quoted" in corpus.notes[0]
    assert load_corpus(cola, reading=Reading(quoting="minimal")).split("train").sentences[0] == (
        'He said "no" again.'
    )


def test_a_quote_that_swallows_lines_is_noted_and_an_open_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text('text\tlabel\n"Quoth she\t0\nBusy bees"\t1\n')
    assert "1 quoted texts span several lines" in load_corpus(path, columns=TEXT_LABEL).notes[0]
    path.write_text('text\tlabel\nfine\t1\n"Quoth she\t0\nBusy bees\t1\n')
    with pytest.raises(ColakitError, match=r"own\.tsv:3: a quoted cell does not end.*\n.*data\.quoting=none"):
        load_corpus(path, columns=TEXT_LABEL)
    raw = load_corpus(path, columns=TEXT_LABEL, reading=Reading(quoting="none"))
    assert raw.split("train").sentences == ("fine", '"Quoth she', "Busy bees")


def test_real_cola_is_read_byte_for_byte(shared: Path) -> None:
    for path in sorted((shared / "cola" / "cola_public" / "raw").glob("*.tsv")):
        split = load_corpus(path).split("train")
        sources, labels = split.sources, split.require_labels().tolist()
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        cells = zip(sources, labels, [line.split("\t")[2] for line in lines], split.sentences, strict=True)
        assert ["\t".join(map(str, row)) for row in cells] == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": "b"}', "the array does not end"),
        ('[{"text": "a"},]', r"element 2: not JSON"),
        ('[{"text": "a"} {"text": "b"}]', "'{' after element 1"),
        ("[1]", "element 1: a int, not an object"),
        ('{"text": "a"}\n5\n{"te', r"2 invalid lines: line 2: a int, not an object; line 3: not JSON"),
        ('{"text": "a"}\n{"txt": "b"}', r":2: .*line 2: no 'text'"),
        ('{"text": ["a"]}', "line 1: a list, not text"),
        ('{"text": "a\\u0000b"}', "contains NUL characters"),
        ('{"text": "\\ud800"}', "surrogates not allowed"),
        ('{"text": ' + "[" * 100_000, "nested too deeply"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "a number has more than 40 digits"),
        ('[{"text": "a", "n": ' + "9" * 5000 + "}]", "element 1: a number has more than 40 digits"),
        ('{"text": {"0": "a", "1": "b"}}', "a dict, not text"),
        ("", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_wrong_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ColakitError, match=message) as caught:
        load_corpus(path, columns=Columns("text", None))
    assert caught.value.message.startswith(str(path))


@given(
    records=st.lists(st.dictionaries(st.text("ab]},", max_size=3), CELL, min_size=1, max_size=3), max_size=4)
)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_size_of_pieces_does_not_change_an_array(size: int, records: list[dict[str, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "CHUNK", size)
        result = rows_of(json.dumps(records, indent=1).encode(), "a.json")
    assert result == records or (isinstance(result, ColakitError) and not records)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_a_table_is_read_in_bounded_memory(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"big.{ending}"
    frame = pandas.DataFrame(
        {"text": [f"sentence {i} " + "x" * 500 for i in range(40_000)], "n": range(40_000)}
    )
    path.write_bytes(written(frame, ending))
    del frame
    tracemalloc.start()
    with open_sentences(str(path), AS_PANDAS, "text") as table:
        assert sum(1 for _ in table.with_texts(sentence_column(table, "text", None))) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20 < 40_000 * 500


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.csv.zst", "zstd"), ("hf:a", "datasets")]
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> Any:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    path = name if name.startswith("hf:") else tmp_path / name
    if isinstance(path, Path):
        path.write_bytes(b"x")
    with pytest.raises(ColakitError, match=package) as caught:
        load_corpus(path, columns=TEXT_LABEL)
    assert caught.value.hint == "Install it with: pip install 'colakit[data]'"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a dataset of the hub, which is also in the hub's cache as someone/cola."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["unacceptable", "acceptable"]),
        }
    )
    for split, labels in {"train": [1, 0, 1], "validation": [0, 1], "test": [-1, -1]}.items():
        rows = {"sentence": [f"{split} {i}." for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"cola/{split}.parquet")
    datasets.load_dataset(str(tmp_path / "cola"))
    shutil.copytree(tmp_path / "cache/cola", tmp_path / "cache/someone___cola")
    return tmp_path / "cola"


@pytest.mark.parametrize("name", ["folder", "someone/cola", "someone/cola/default"])
def test_a_dataset_of_the_hub_is_read_from_a_folder_and_from_the_cache(name: str, hub: Path) -> None:
    columns = Columns("sentence", "label")
    where = f"hf:{hub if name == 'folder' else name}"
    corpus = load_corpus(where, columns=columns)
    assert corpus.label_names == ("unacceptable", "acceptable")  # not sorted: as the dataset numbers them
    assert corpus.split("train").require_labels().tolist() == [1, 0, 1]
    assert corpus.split("validation").require_labels().tolist() == [0, 1]
    assert corpus.split("test").labels is None
    files = {"train": f"{where}:train", "dev": f"{where}:validation"}
    assert load_corpus(files=files, columns=columns).split("dev").sentences == (
        "validation 0.",
        "validation 1.",
    )
    with pytest.raises(ColakitError, match="splits train, validation, test"):
        load_corpus(files={"train": where}, columns=columns)
    with pytest.raises(ColakitError, match="no split 'dev'"):
        load_corpus(f"{where}:dev", columns=columns)
    with open_sentences(f"{where}:test", AS_PANDAS, None) as table:
        assert [text for _, text in table.with_texts("sentence")] == ["test 0.", "test 1."]


def test_a_dataset_that_is_not_in_the_cache_is_named(hub: Path) -> None:
    for name in ("hf:someone/else", "hf:nothing"):
        with pytest.raises(ColakitError, match=f"^{name}: cannot be loaded"):
            load_corpus(name, columns=TEXT_LABEL)


@pytest.mark.parametrize(
    ("size", "rows", "compression", "message"),
    [
        (2**20, 20_000, "zstd", "unpacks to more than 1 MiB"),
        (2**21, 20_000, "none", "a text is longer than 1 MiB"),
        (1, 2**21, "none", "unpacks to more than 1 MiB"),
    ],
    ids=["packed", "repeated", "rows"],
)
def test_a_parquet_bomb_is_refused_in_bounded_memory(
    size: int, rows: int, compression: str, message: str, tmp_path: Path
) -> None:
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), ["x" * size])
    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression=compression)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(ColakitError, match=message):
        load_corpus(path, columns=Columns("text", None))
    assert pyarrow.total_allocated_bytes() - before < 2**24
