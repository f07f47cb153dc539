"""Corpora: all layouts give equal splits, errors name the line, and CoLA has its published counts."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from colakit.data import corpus_files as places
from colakit.data.checks import check_corpus
from colakit.data.corpora import Corpus, Split, load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.fetch import COLA_SHA256
from colakit.data.labelled_rows import Columns
from colakit.errors import ColakitError

COLA = {
    "in_domain_train.tsv": 'a1\t1\t\tThe cat "sleeps".\na1\t0\t*\tThe cat sleep.\nb2\t1\t\tDogs sleep.\n',
    "in_domain_dev.tsv": "a1\t1\t\tThe dog sleeps.\nb2\t0\t*\tThe dog sleep.\n",
    "out_of_domain_dev.tsv": "c3\t0\t??\tCats sleeps.\nc3\t1\t\tCats sleep.",
}
TOKENIZED = {name: text.replace(".", " .") for name, text in COLA.items()}
GLUE = {
    "train.tsv": COLA["in_domain_train.tsv"],
    "dev.tsv": COLA["in_domain_dev.tsv"],
    "test.tsv": 'index\tsentence\n0\tThe "bird" sings.\n1\tThe bird sing.\n',
}
THREE = "text\tmood\nfine\tgood\npoor\tbad\nplain\tneutral\ngreat\tgood\n"
MOOD = Columns("text", "mood")

Write = Callable[[Path, Mapping[str, str]], Path]


def write_zip(path: Path, members: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def write_folder(path: Path, members: Mapping[str, str]) -> Path:
    for name, text in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text.encode())
    return path


def write_file(text: str, name: str = "own.tsv") -> Path:
    path = Path(name)
    path.write_bytes(text.encode())
    return path


def below(folder: str, members: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in members.items()}


def contents(corpus: Corpus) -> dict[str, object]:
    """Labels and splits of a corpus, without its name."""
    return {
        name: (split.sentences, None if split.labels is None else split.labels.tolist(), split.sources)
        for name, split in corpus.splits.items()
    } | {"label_names": corpus.label_names}


def outcome(read: Callable[[], dict[str, object]]) -> dict[str, object] | ColakitError:
    try:
        return read()
    except ColakitError as error:
        return error


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [write_zip, write_folder])
@pytest.mark.parametrize(
    "members",
    [
        below("cola_public/tokenized", TOKENIZED) | below("cola_public/raw", COLA),
        below("raw", COLA) | below("tokenized", TOKENIZED),
        below("raw", COLA),
        COLA,
    ],
    ids=["published", "inner", "raw", "bare"],
)
def test_every_cola_layout_reads_the_same(write: Write, members: dict[str, str]) -> None:
    corpus = load_corpus(write(Path("given"), members))
    assert contents(corpus) == {
        "train": (('The cat "sleeps".', "The cat sleep.", "Dogs sleep."), [1, 0, 1], ("a1", "a1", "b2")),
        "id_dev": (("The dog sleeps.", "The dog sleep."), [1, 0], ("a1", "b2")),
        "ood_dev": (("Cats sleeps.", "Cats sleep."), [0, 1], ("c3", "c3")),
        "label_names": ("unacceptable", "acceptable"),
    }
    assert corpus.report_splits() == ["id_dev", "ood_dev"]


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_tokenized_text_is_read_if_raw_text_is_missing(write: Write) -> None:
    corpus = load_corpus(write(Path("given"), below("cola_public/tokenized", TOKENIZED)))
    assert corpus.split("train").sentences[2] == "Dogs sleep ."


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_glue_has_an_unlabelled_test_set(write: Write) -> None:
    corpus = load_corpus(write(Path("given"), below("CoLA", GLUE)))
    assert list(corpus.splits) == ["train", "dev", "test"]
    assert corpus.split("dev").require_labels().tolist() == [1, 0]
    assert corpus.split("test").sentences == ('The "bird" sings.', "The bird sing.")
    assert corpus.report_splits() == ["dev"]
    with pytest.raises(ColakitError, match="split 'test' has no labels"):
        corpus.split("test").require_labels()


@pytest.mark.parametrize("name", ["own.tsv", "own.txt", "OWN.TSV"])
def test_a_single_file_of_four_columns_is_train(name: str) -> None:
    corpus = load_corpus(write_file(COLA["in_domain_train.tsv"], name))
    assert list(corpus.splits) == ["train"]
    assert corpus.split("train").require_labels().tolist() == [1, 0, 1]
    assert corpus.report_splits() == ["train"]


def test_named_files_are_splits() -> None:
    folder = write_folder(Path("given"), COLA)
    named = {split: folder / file for split, file in COLA_FILES.items()}
    assert contents(load_corpus(files=named)) == contents(load_corpus(folder))


def test_dev_joins_the_dev_sets_in_order() -> None:
    corpus = load_corpus(write_folder(Path("given"), COLA))
    dev = corpus.split("dev")
    parts = [corpus.split("id_dev"), corpus.split("ood_dev")]
    assert dev.name == "dev"
    assert dev.sentences == parts[0].sentences + parts[1].sentences
    assert dev.require_labels().tolist() == [1, 0, 0, 1]
    assert dev.sources == ("a1", "b2", "c3", "c3")


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(ColakitError, match=r"no split 'ood-dev'\. Did you mean ood_dev\?"):
        load_corpus(write_folder(Path("given"), COLA)).split("ood-dev")


def test_fingerprint_separates_a_two_line_sentence_from_two_sentences() -> None:
    assert Split("test", ("a\nb",)).fingerprint() != Split("test", ("a", "b")).fingerprint()


def test_fingerprint_depends_on_sentences_and_labels() -> None:
    texts = ["x\t1\t\tA b.\n", "y\t1\t*\tA b.\n", "x\t0\t\tA b.\n", "x\t1\t\tA c.\n"]
    prints = [load_corpus(write_file(text)).split("train").fingerprint() for text in texts]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 3


@pytest.mark.parametrize("label", ["2", "1.0", "", " ", "-1", "acceptable"])
def test_every_wrong_label_is_counted_and_the_first_is_named(label: str) -> None:
    lines = ["s\t1\t\tA cat sleeps."] * 20
    for wrong in (4, 5, 9, 12, 13, 19):
        lines[wrong - 1] = f"s\t{label}\t\tA cat sleeps."
    path = write_file("\n".join(lines))
    with pytest.raises(ColakitError) as caught:
        load_corpus(path)
    message = caught.value.message
    assert message.startswith(
        f"own.tsv:4: the second column must be 0 or 1 (6 invalid lines: line 4: label {label!r}"
    )
    assert message.endswith("line 13: label " + repr(label) + "; and 1 more)")


def test_an_invalid_line_in_a_zip_names_archive_member_and_line() -> None:
    path = write_zip(Path("given.zip"), COLA | {"in_domain_dev.tsv": "a\t1\t\tFine.\na\t1\tFine.\n"})
    with pytest.raises(ColakitError, match=r"^given\.zip/in_domain_dev\.tsv:2: .*line 2: 3 columns"):
        load_corpus(path)


def test_a_table_with_a_header_needs_column_settings() -> None:
    with pytest.raises(
        ColakitError, match=r"^own\.tsv:1: 2 columns \(text \| mood\).*(.|\n)*data\.text_column"
    ):
        load_corpus(write_file(THREE))


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", None, "own.tsv: is empty"),
        ("\ufeff", None, "own.tsv: is empty"),
        ("", MOOD, "own.tsv: is empty"),
        ("text\tmood\n", MOOD, "own.tsv: has a header and no rows"),
        ("index\tsentence\n", None, "own.tsv: has a header and no rows"),
    ],
    ids=["empty", "BOM", "empty-table", "header", "glue-header"],
)
def test_a_file_without_sentences_is_refused(text: str, columns: Columns | None, message: str) -> None:
    with pytest.raises(ColakitError) as caught:
        load_corpus(write_file(text), columns=columns)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gone.zip", lambda path: None, "file not found"),
        ("notes.md", lambda path: path.write_text("x"), "not a zip, folder, TSV or CSV"),
        ("empty", Path.mkdir, "contains none of in_domain_train.tsv"),
        ("other.zip", lambda path: write_zip(path, {"a.tsv": "x"}), "contains none of in_domain_train.tsv"),
    ],
)
def test_a_path_without_a_corpus_is_refused(name: str, make: Callable[[Path], object], message: str) -> None:
    make(Path(name))
    with pytest.raises(ColakitError, match=f"^{name}: {message}"):
        load_corpus(Path(name))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ColakitError, match=r"^gone\.tsv: No such file"):
        load_corpus(files={"train": Path("gone.tsv")}, columns=MOOD)


@pytest.mark.parametrize(("name", "separator"), [("own.tsv", "\t"), ("own.csv", ",")])
def test_named_columns_of_a_table_make_a_corpus(name: str, separator: str) -> None:
    path = write_file("id\t" + THREE.replace("\n", "\n7\t").removesuffix("7\t"), name)
    path.write_text(path.read_text().replace("\t", separator))
    corpus = load_corpus(path, columns=MOOD)
    assert contents(corpus) == {
        "train": (("fine", "poor", "plain", "great"), [1, 0, 2, 1], ()),
        "label_names": ("bad", "good", "neutral"),
    }


def test_label_names_fix_the_order() -> None:
    corpus = load_corpus(write_file(THREE), columns=MOOD, label_names=("good", "neutral", "bad"))
    assert corpus.label_names == ("good", "neutral", "bad")
    assert corpus.split("train").require_labels().tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-2"], ("-2", "9", "10")),
        (["2.5", "10", "2"], ("2", "2.5", "10")),
        (["10", "9", "nine"], ("10", "9", "nine")),
    ],
)
def test_labels_that_are_all_numbers_are_sorted_as_numbers(
    labels: list[str], expected: tuple[str, ...]
) -> None:
    text = "text\tmood\n" + "".join(f"t\t{label}\n" for label in labels)
    assert load_corpus(write_file(text), columns=MOOD).label_names == expected


def test_label_order_is_the_same_in_every_process() -> None:
    labels = ["1", "1.0", "01", "1.00", "+1", "1e0", "001", "1."]
    path = write_file("text\tmood\n" + "".join(f"t\t{label}\n" for label in labels))
    program = (
        "import sys; from pathlib import Path; from colakit.data.corpora import *; "
        "print(load_corpus(Path(sys.argv[1]), columns=Columns('text', 'mood')).label_names)"
    )
    root = str(Path(places.__file__).parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("label_names", [None, ("bad", "good", "neutral")])
def test_a_label_missing_from_train_is_named_by_its_line(label_names: tuple[str, ...] | None) -> None:
    files = {
        "train": write_file(THREE, "train.tsv"),
        "dev": write_file("text\tmood\nnice\tgood\nodd\tstrange\n", "dev.tsv"),
    }
    with pytest.raises(ColakitError, match=r"^dev\.tsv:3: .*bad, good, neutral.*line 3: label 'strange'"):
        load_corpus(files=files, columns=MOOD, label_names=label_names)


def test_a_blank_label_is_named_by_its_line() -> None:
    with pytest.raises(
        ColakitError, match=r"^own\.tsv:3: .*2 invalid lines: line 3: no label; line 4: no label"
    ):
        load_corpus(write_file("text\tmood\na\tgood\nb\t\nc\t \n"), columns=MOOD)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("txt", "mood"), "no column 'txt'.*mean text?"),
        (Columns("text", "moods"), "no column 'moods'.*mood?"),
    ],
)
def test_a_missing_column_names_the_nearest(columns: Columns, message: str) -> None:
    with pytest.raises(ColakitError, match=message):
        load_corpus(write_file(THREE), columns=columns)


def test_a_split_without_the_label_column_is_unlabelled() -> None:
    files = {"train": write_file(THREE, "train.tsv"), "test": write_file("text\nnice\n", "test.tsv")}
    assert load_corpus(files=files, columns=MOOD).split("test").labels is None


def test_a_ragged_table_row_is_named_by_its_line() -> None:
    with pytest.raises(ColakitError, match=r"^own\.csv:5: every row must have 2 columns"):
        load_corpus(write_file('text,mood\n"a\nb",good\n\nc\n', "own.csv"), columns=MOOD)


@pytest.mark.parametrize("evil", ["../../evil.tsv", "/evil.tsv", "../../in_domain_train.tsv", "..\\evil.tsv"])
def test_members_of_a_zip_are_never_written(evil: str, tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    archive = write_zip(deep / "given.zip", {evil: COLA["in_domain_train.tsv"]} | below("raw", COLA))
    before = files_below(tmp_path)
    assert len(load_corpus(archive).split("train")) == 3
    assert files_below(tmp_path) == before
    assert not Path("/evil.tsv").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a list of open files")
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_a_refused_file_is_closed_at_once(write: Write) -> None:
    path = write(Path("given"), COLA | {"in_domain_train.tsv": "index\tsentence\tmood\n" * 9})
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ColakitError, match="CoLA has 4") as caught:
        load_corpus(path)
    assert os.listdir("/proc/self/fd") == before
    assert caught.value.__traceback__ is not None  # keeps the frames of the reader alive


@pytest.mark.parametrize("text", ["\n", "a\t1\t\tAll is well.\n"], ids=["blank", "rows"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(text: str) -> None:
    bomb = COLA["in_domain_dev.tsv"] + text * (2**25 // len(text))
    path = write_zip(Path("given.zip"), COLA | {"in_domain_dev.tsv": bomb})
    tracemalloc.start()
    with pytest.raises(ColakitError, match=r"in_domain_dev\.tsv cannot be unpacked .* more than \d MiB"):
        load_corpus(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size < 2**18
    assert peak < 64 * 2**20


def test_a_weakly_compressed_member_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(Path("given.zip"), COLA | {"in_domain_dev.tsv": random.Random(0).randbytes(2**21).hex()})
    monkeypatch.setattr(places, "MAX_MEMBER_BYTES", 2**20)
    with pytest.raises(ColakitError, match=r"in_domain_dev\.tsv cannot be unpacked .* more than 1 MiB"):
        load_corpus(path)


def test_a_damaged_zip_gives_unchanged_sentences_or_an_error() -> None:
    path = write_zip(Path("given.zip"), COLA)
    whole, raw = contents(load_corpus(path)), path.read_bytes()
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 0x08
        path.write_bytes(damaged)
        loaded = outcome(lambda: contents(load_corpus(path)))
        if isinstance(loaded, ColakitError):
            assert "given.zip" in loaded.message
        else:  # a member with a damaged name may be missing, never changed
            assert loaded.items() <= whole.items(), position


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_zip_is_refused(share: float) -> None:
    path = write_zip(Path("given.zip"), COLA)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ColakitError, match=r"^given\.zip: "):
        load_corpus(path)


def test_an_encrypted_member_is_refused() -> None:
    path = write_zip(Path("given.zip"), COLA)
    raw = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = raw.index(signature) + flags
        raw[start : start + 2] = struct.pack("<H", 1)
    path.write_bytes(raw)
    with pytest.raises(ColakitError, match=r"in_domain_train\.tsv cannot be unpacked"):
        load_corpus(path)


def test_duplicates_conflicts_and_blanks_are_counted() -> None:
    train = "s\t1\t\tOne.\ns\t1\t\tOne.\ns\t0\t\tOne.\ns\t1\t\tTwo.\ns\t1\t\t\n"
    dev = "s\t1\t\tOne.\ns\t1\t\tOne.\ns\t1\t\tThree.\n"
    corpus = load_corpus(files={"train": write_file(train, "train.tsv"), "dev": write_file(dev, "dev.tsv")})
    checked = {check.name: check for check in check_corpus(corpus)}
    assert checked["train"].counts == {"unacceptable": 1, "acceptable": 4}
    assert checked["train"].majority_rate == 0.8
    assert checked["train"].warnings() == [
        "train: 2 duplicate rows",
        "train: 1 sentences with more than one label",
        "train: 1 blank sentences",
    ]
    assert checked["dev"].warnings() == [
        "dev: 1 duplicate rows",
        "dev: 2 rows whose sentence is also in train",
        "dev: all sentences have one label",
    ]


@pytest.fixture(scope="module")
def cola(shared: Path) -> Corpus:
    return load_corpus(shared / "cola" / "cola_public.zip")


@pytest.mark.parametrize("name", COLA_SHA256)
def test_real_files_are_the_published_ones(name: str, shared: Path) -> None:
    raw = (shared / "cola" / "cola_public" / "raw" / name).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == COLA_SHA256[name]


@pytest.mark.parametrize("folder", ["cola_public", "cola_public/raw"])
def test_real_zip_and_folder_are_equal(folder: str, shared: Path, cola: Corpus) -> None:
    assert contents(load_corpus(shared / "cola" / folder)) == contents(cola)


@pytest.mark.parametrize(
    ("split", "rows", "majority"),
    [("train", 8551, 70.44), ("id_dev", 527, 69.26), ("ood_dev", 516, 68.60), ("dev", 1043, None)],
)
def test_real_counts_are_the_published_ones(
    split: str, rows: int, majority: float | None, cola: Corpus
) -> None:
    loaded = cola.split(split)
    assert len(loaded) == len(loaded.sources) == rows
    if majority is not None:
        assert round(100 * float(np.mean(loaded.require_labels() == 1)), 2) == majority


def test_real_duplicates_and_conflicts_are_the_published_ones(cola: Corpus) -> None:
    checked = {check.name: check for check in check_corpus(cola)}
    assert (checked["train"].duplicate_rows, checked["train"].conflicting_sentences) == (19, 11)
    assert (checked["id_dev"].in_train, checked["ood_dev"].in_train) == (6, 12)
    assert all(check.empty_rows == 0 for check in checked.values())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("".join(f"a,{i}\n" for i in range(1001)), "1,001 different labels; at most 1,000 are allowed"),
        ('a,"x\ty"\n', "line 2: label 'x\\ty'"),
        (f"a,{'x' * 201}\n", "a label is needed, of up to 200 characters"),
    ],
    ids=["many", "a tab", "long"],
)
def test_labels_are_bounded(rows: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(b"text,label\n" + rows.encode())
    with pytest.raises(ColakitError) as caught:
        load_corpus(tmp_path / "own.csv", columns=Columns("text", "label"))
    assert expected in caught.value.message


def test_a_zip_of_many_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.tsv", b"")
    with pytest.raises(ColakitError, match=r"its list of members is larger than 1 MiB"):
        load_corpus(tmp_path / "many.zip")
