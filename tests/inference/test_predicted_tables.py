"""`predict` on tables: each row is one sentence, other columns pass through, and every reader agrees."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.students import student

from colakit.data.tokenizer import train_tokenizer
from colakit.inference.classifier import SentenceClassifier

Run = Callable[..., tuple[int, str, str]]
SENTENCES = ["The tall judge calls itself.", 'He said "no",\nthen\tleft.', "", "Ünïcödé; | 'quotes'"]
ENDINGS = ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.xz", "json.zst"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of an untrained student that records no column of the text, and of one that records `text`."""
    tokenizer = train_tokenizer(SENTENCES, 270)
    network = student(vocab_size=tokenizer.vocab_size, num_labels=2)
    folders = {}
    for name, data in {"cola": {"path": "cola"}, "own": {"path": "own.csv", "text_column": "text"}}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        origin = {"command": "distill", "settings": {"data": data}}
        classifier = SentenceClassifier(network, tokenizer, ("bad", "good"), 40, 0.5, origin=origin)
        classifier.save(folders[name] / "ckpt.pt")
    return folders


@pytest.fixture
def expected(models: dict[str, Path], colakit: Run) -> pandas.DataFrame:
    """Predictions of the bare sentences."""
    from colakit.inference.numpy_predictor import StudentPredictor

    predictions = StudentPredictor(models["own"])(SENTENCES)
    columns = {"predicted": predictions.names}
    columns |= {f"p({name})": predictions.probs[:, i].round(6) for i, name in enumerate(("bad", "good"))}
    return pandas.DataFrame(columns)


def frame() -> pandas.DataFrame:
    return pandas.DataFrame({"id": ["a,b", "2", '"', "4"], "text": SENTENCES, "score": [1.5, 2.0, 3.25, 4.0]})


def write(path: Path) -> None:
    name = path.name
    if ".parquet" in name:
        frame().to_parquet(path)
    elif ".json" in name:
        frame().to_json(path, orient="records", lines=".jsonl" in name)
    else:
        frame().to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")


def read(source: Any, name: str) -> pandas.DataFrame:
    if ".parquet" in name:
        return pandas.read_parquet(source)
    packed = {} if isinstance(source, io.StringIO) else {"compression": "infer"}
    if ".json" in name:
        table = pandas.read_json(source, orient="records", lines=".jsonl" in name, dtype=False, **packed)
        probs = pandas.DataFrame(list(table.pop("probabilities")))
        return table.join(probs.rename(columns=lambda label: f"p({label})"))
    return pandas.read_csv(source, sep="\t" if ".tsv" in name else ",", keep_default_na=False, **packed)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_comes_back_in_its_format_with_the_predictions_of_the_bare_sentences(
    ending: str, models: dict[str, Path], expected: pandas.DataFrame, colakit: Run, tmp_path: Path
) -> None:
    if ending.endswith("zst"):
        pytest.importorskip("zstandard", reason="pandas reads zstd with it")
    write(tmp_path / f"own.{ending}")
    command = ["predict", "--model", models["own"], tmp_path / f"own.{ending}"]
    wanted = frame().join(expected)
    if ending != "parquet":
        code, out, err = colakit(*command)
        assert code == 0, err
        pandas.testing.assert_frame_equal(read(io.StringIO(out), f"out.{ending}"), wanted, check_dtype=False)
    for target in ENDINGS:
        if target.endswith("zst"):
            pytest.importorskip("zstandard", reason="pandas reads zstd with it")
        path = tmp_path / f"out.{target}"
        code, out, err = colakit(*command, "--output", path)
        assert (code, out) == (0, ""), err
        result = read(path, path.name).astype({"score": float})  # CSV has no types
        pandas.testing.assert_frame_equal(result, wanted, check_dtype=False)


@pytest.mark.parametrize("header", ["index\tsentence", "Id\tSentence"])
@pytest.mark.parametrize("model", ["cola", "own"])
@pytest.mark.parametrize("source", ["test.tsv", "test.txt", "stdin"])
def test_headers_of_glue_and_kaggle_are_no_sentences(
    source: str,
    model: str,
    header: str,
    models: dict[str, Path],
    colakit: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = ["The tall judge calls itself.", 'The "tailors" help baker this.']
    Path("bare.txt").write_text("\n".join(bare))
    raw = f"{header}\n0\t{bare[0]}\n1\t{bare[1]}\n".encode()
    Path(source).write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    code, out, err = colakit("predict", "--model", models[model], *([] if source == "stdin" else [source]))
    assert code == 0, err
    _, plain, _ = colakit("predict", "--model", models[model], "bare.txt")
    rows = [line.split("\t") for line in out.splitlines()]
    texts = list(csv.reader(io.StringIO(plain), delimiter="\t"))
    assert rows[0] == [*header.split("\t"), "predicted", "p(bad)", "p(good)"]
    assert [row[1] for row in rows[1:]] == [row[3] for row in texts[1:]] == bare
    assert [row[2:] for row in rows[1:]] == [row[:3] for row in texts[1:]]


@pytest.mark.parametrize(
    "raw",
    ['text,n\n"The cat, ""it""\nsleeps.",1\n', '{"text": "The cat, \\"it\\"\\nsleeps.", "n": "1"}\n'],
    ids=["csv", "jsonl"],
)
def test_a_table_on_standard_input_is_recognised(
    raw: str, models: dict[str, Path], colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw.encode())))
    code, out, err = colakit("predict", "--model", models["own"])
    assert code == 0, err
    row = next(csv.DictReader(io.StringIO(out))) if raw.startswith("text") else json.loads(out)
    assert (row["text"], row["n"]) == ('The cat, "it"\nsleeps.', "1")
    assert row["predicted"] in ("bad", "good")


def test_cola_s_own_layout_is_labelled_and_kept_byte_for_byte(models: dict[str, Path], colakit: Run) -> None:
    raw = 'a\t1\t\t"Quoth she.\nb\t0\t*\tShe said ""no"".\n'
    Path("cola.tsv").write_text(raw)
    code, out, err = colakit("predict", "--model", models["own"], "cola.tsv")
    assert code == 0, err
    rows = [line.rsplit("\t", 3) for line in out.splitlines()]
    assert rows[0] == ["source\tlabel\tmark\tsentence", "predicted", "p(bad)", "p(good)"]
    assert [row[0] for row in rows[1:]] == raw.splitlines()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("txt,n\na,1\n", [], "no setting names the column of text (has txt, n)"),
        (
            "txt,n\na,1\n",
            ["--set", "data.text_column=text"],
            "no column 'text' (has txt, n). Did you",
        ),
        ("text,n\na\n", [], "every row must have 2 columns"),
        ('text,n\n"a,1\n', [], "a quoted cell does not end"),
        ("text,n\na,1\n", ["--output", "out.doc"], "its name tells no format"),
        ("text,n\na,1\n", ["--output", "out.tsv", "--jsonl"], "--jsonl writes JSON lines"),
        ("text,n\na,1\n", ["--output", "out.csv", "--out", "folder"], "both name where to write"),
    ],
)
def test_a_table_that_cannot_be_labelled_is_named(
    text: str, options: list[str], message: str, models: dict[str, Path], colakit: Run
) -> None:
    Path("own.csv").write_text(text)
    code, _, err = colakit("predict", "--model", models["own"], "own.csv", *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert not Path("out.tsv").exists()


def test_columns_of_an_earlier_prediction_are_kept(models: dict[str, Path], colakit: Run) -> None:
    Path("own.csv").write_text("text\nThe cat sleeps.\n")
    command = ["predict", "--model", models["own"]]
    assert colakit(*command, "own.csv", "--output", "once.csv")[0] == 0
    assert colakit(*command, "once.csv", "--output", "twice.csv")[0] == 0
    header = Path("twice.csv").read_text().splitlines()[0].split(",")
    added = ["predicted", "p(bad)", "p(good)"]
    assert header == ["text", *added, *(f"{name}.1" for name in added)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), max_size=20).filter(str.strip),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_no_character_of_a_sentence_shifts_a_column(
    ending: str, texts: list[str], models: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    path = tmp_path / f"own.{ending}"
    separator = {"csv": ",", "tsv": "\t"}[ending]
    pandas.DataFrame({"text": texts, "n": range(len(texts))}).to_csv(path, index=False, sep=separator)
    code, _, err = colakit("predict", "--model", models["own"], path, "--output", tmp_path / f"out.{ending}")
    assert code == 0, err
    out, types = tmp_path / f"out.{ending}", {"text": str}
    result = pandas.read_csv(out, sep=separator, keep_default_na=False, dtype=types)
    assert result.text.tolist() == texts
    assert result.n.tolist() == list(range(len(texts)))
    assert set(result.predicted) <= {"bad", "good"}
