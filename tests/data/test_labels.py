"""Labels: names, missing ones, oddities, and a column that cuts a table into splits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas
import pytest

from colakit.config.resolve import resolve
from colakit.data.checks import check_corpus, label_warnings
from colakit.data.corpora import Corpus, load_corpus
from colakit.data.labelled_rows import MAX_SPLITS, MISSING, Columns
from colakit.data.sentences import open_sentences
from colakit.data.splits import train_val_split
from colakit.data.tables import AS_PANDAS
from colakit.errors import ColakitError

COLUMNS = Columns("text", "label", "split")


def corpus_of(labels: list[object], **options: object) -> Corpus:
    path = Path("own.csv")
    pandas.DataFrame({"text": [f"s {i}" for i in range(len(labels))], "label": labels}).to_csv(path)
    return load_corpus(path, columns=COLUMNS, **options)  # type: ignore[arg-type]


def test_what_pandas_reads_as_missing_is_missing() -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert MISSING - {"-1", "-1.0"} == STR_NA_VALUES


@pytest.mark.parametrize(
    ("labels", "names"),
    [([1, 0], ("0", "1")), ([1.0, 0.0], ("0.0", "1.0")), ([True, False], ("False", "True"))],
    ids=["integers", "floats", "booleans"],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_a_label_is_a_name_whatever_its_type(
    ending: str, labels: list[object], names: tuple[str, ...], tmp_path: Path
) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "label": labels})
    path = tmp_path / f"own.{ending}"
    match ending:
        case "csv":
            frame.to_csv(path)
        case "parquet":
            frame.to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=ending == "jsonl", double_precision=1)
    assert load_corpus(path, columns=COLUMNS).label_names == names


@pytest.mark.parametrize("missing", ["nan", "", " ", "-1", "None", "NULL"])
def test_missing_labels_are_refused_in_train_and_left_out_elsewhere(missing: str) -> None:
    labels = [missing if i % 20 == 0 else ("1.0", "0.0")[i % 2] for i in range(200)]
    with pytest.raises(
        ColakitError, match=r"^own\.csv:2: a label is needed.*\(10 invalid lines: line 2:"
    ) as caught:
        corpus_of(labels)
    if missing.strip():
        assert f"--set data.label_names={'-1,0.0' if missing == '-1' else '0.0,1.0'}" in str(caught.value)
        names = ("0.0", "1.0", missing)
        assert corpus_of(labels, label_names=names).split("train").require_labels().tolist().count(2) == 10
    Path("own.csv").rename("dev.csv")
    corpus_of(["1.0", "0.0"])
    files = {"train": "own.csv", "dev": "dev.csv"}
    corpus = load_corpus(files=files, columns=COLUMNS)
    dev = corpus.split("dev")
    assert corpus.label_names == ("0.0", "1.0")
    assert len(dev) == 190
    assert dev.rows is not None
    assert dev.rows.tolist() == [i for i in range(200) if i % 20]
    assert [labels[i] for i in dev.rows] == [corpus.label_names[i] for i in dev.require_labels()]
    assert corpus.notes == ("dev: 10 of 200 rows have no label and are left out",)


def test_a_test_export_without_labels_is_unlabelled() -> None:
    corpus = corpus_of([-1] * 5)
    assert corpus.split("train").labels is None
    assert corpus.notes == ("train: its 5 rows have no label",)


def test_names_of_columns_and_labels_may_be_numbers() -> None:
    Path("own.csv").write_text("0,1\nfine,1\npoor,0\n")
    resolved = resolve(
        assignments=["data.text_column=0", "data.label_column=1", "data.label_names=[1,0]"], environment={}
    )
    data = resolved.settings.data
    assert data.text_column is not None
    corpus = load_corpus(
        "own.csv", columns=Columns(data.text_column, data.label_column), label_names=data.label_names
    )
    assert corpus.label_names == ("1", "0")
    assert corpus.split("train").require_labels().tolist() == [0, 1]
    with pytest.raises(ColakitError, match="quote the value if it is text"):
        resolve(assignments=["data.label_names=[yes,no]"], environment={})


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (
            ("Good", "bad", "good "),
            "labels 'Good', 'good ' are different classes, but differ only in spelling",
        ),
        (("1", "1.0"), "labels '1', '1.0' are different classes"),
        (tuple(str(i / 4) for i in range(21)), "these look like scores, not classes"),
    ],
)
def test_odd_labels_are_noted(names: tuple[str, ...], warning: str) -> None:
    (text,) = label_warnings(names)
    assert warning in text


def test_usual_labels_are_not_noted() -> None:
    assert label_warnings(("bad", "good")) == label_warnings(tuple(map(str, range(20)))) == []
    assert label_warnings(tuple(f"intent {i}" for i in range(77))) == []


def test_the_only_sentence_of_a_class_stays_in_train_and_is_named() -> None:
    labels = ["flight"] * 100 + ["airfare"] * 40 + ["day_name"]
    corpus = corpus_of(labels)
    (check,) = check_corpus(corpus)
    assert "one sentence only of day_name" in check.warnings()[0]
    train, val = train_val_split(corpus.split("train"), 0.1, 0)
    day_name = corpus.label_names.index("day_name")
    assert (train.require_labels() == day_name).sum() == 1
    assert sorted(np.bincount(val.require_labels()).tolist()) == [0, 4, 10]
    assert len(train) + len(val) == len(labels)


def test_a_column_cuts_one_table_into_splits() -> None:
    rows = pandas.DataFrame(
        {
            "text": ["a", "b", "c", "d"],
            "label": ["x", "y", "y", ""],
            "split": ["train", "train", "dev ", "test"],
        }
    )
    rows.to_csv("own.csv")
    corpus = load_corpus("own.csv", columns=COLUMNS)
    assert {name: split.sentences for name, split in corpus.splits.items()} == {
        "train": ("a", "b"),
        "dev": ("c",),
        "test": ("d",),
    }
    assert corpus.split("test").labels is None
    whole = load_corpus("own.csv", columns=Columns("text", "label"), label_names=("x", "y", ""))
    assert whole.split("train").sentences == ("a", "b", "c", "d")
    named = load_corpus(files={"train": "own.csv"}, columns=COLUMNS, label_names=("x", "y", ""))
    assert list(named.splits) == ["train"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", ""], "line 3: no name of a split"),
        ([f"part {i}" for i in range(MAX_SPLITS + 1)], "more than 20 values.*\n.*data.split_column=null"),
    ],
)
def test_a_column_that_names_no_splits_is_refused(values: list[str], message: str) -> None:
    pandas.DataFrame({"text": values, "label": "x", "split": values}).to_csv("own.csv")
    with pytest.raises(ColakitError, match=message):
        load_corpus("own.csv", columns=Columns("label", "text", "split"))


@pytest.mark.parametrize("header", ["index\tsentence", "Id\tSentence", "id\tsentence"])
def test_test_sets_of_glue_and_kaggle_do_not_spoil_train_and_dev(header: str, tmp_path: Path) -> None:
    rows = "a\t1\t\tThe cat sleeps.\na\t0\t*\tThe cat sleep.\n"
    test = f"{header}\n0\tThe bird sings.\n1\tThe bird sing.\n"
    names = {
        "train": "in_domain_train.tsv",
        "id_dev": "in_domain_dev.tsv",
        "ood_dev": "out_of_domain_dev.tsv",
    }
    for layout, tests in (
        (names, {"id_test": "cola_in_domain_test.tsv", "ood_test": "cola_out_of_domain_test.tsv"}),
        ({"train": "train.tsv", "dev": "dev.tsv"}, {"test": "test.tsv"}),
    ):
        folder = tmp_path / layout["train"]
        folder.mkdir()
        for name in layout.values():
            (folder / name).write_text(rows)
        for name in tests.values():
            (folder / name).write_text(test)
        corpus = load_corpus(folder)
        assert set(corpus.splits) == {*layout, *tests}
        assert all(corpus.split(name).require_labels().tolist() == [1, 0] for name in layout)
        for name in tests:
            assert corpus.split(name).labels is None
            assert corpus.split(name).sentences == ("The bird sings.", "The bird sing.")


def test_a_folder_of_tables_has_the_splits_of_their_names(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "train.csv", index=False)
    frame.to_json(tmp_path / "validation.jsonl.gz", orient="records", lines=True)
    frame[["text"]].to_parquet(tmp_path / "test.parquet")
    corpus = load_corpus(tmp_path, columns=COLUMNS)
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert corpus.report_splits() == ["validation"]
    assert {split.sentences for split in corpus.splits.values()} == {("a", "b")}


def test_cola_with_a_header_is_told_which_settings_name_its_columns() -> None:
    Path("own.tsv").write_text("source\tlabel\tmark\tsentence\na\t1\t\tThe cat sleeps.\n")
    with pytest.raises(
        ColakitError, match=r"^own\.tsv:1: 4 columns \(source \| label \| mark \| sentence\)"
    ) as caught:
        load_corpus("own.tsv")
    assert "--set data.text_column=sentence --set data.label_column=label" in (caught.value.hint or "")
    corpus = load_corpus("own.tsv", columns=Columns("sentence", "label"))
    assert corpus.split("train").sentences == ("The cat sleeps.",)


@pytest.mark.parametrize("name", ["own.xlsx", "OWN.XLS", "own.ods"])
def test_a_workbook_is_refused_by_name(name: str) -> None:
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    for read in (
        lambda: load_corpus(name, columns=COLUMNS),
        lambda: load_corpus(files={"train": name}, columns=COLUMNS),
        lambda: open_sentences(name, AS_PANDAS, "text").__enter__(),
    ):
        with pytest.raises(ColakitError, match=rf"^{name}: a workbook is not read.*\n.*CSV UTF-8"):
            read()
