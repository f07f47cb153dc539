"""`data corrupt`: pairs of real and corrupted sentences as a table that other commands read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

Run = Callable[..., tuple[int, str, str]]
COLUMNS = ["--set", "data.text_column=sentence", "--set", "data.label_column=label"]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    lines = [f"The {number} old sailors were singing a song about the sea." for number in range(40)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def as_json(path: Path) -> pandas.DataFrame:
    return pandas.DataFrame(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "read"),
    {
        "pairs.tsv": lambda path: pandas.read_csv(path, sep="\t"),
        "pairs.csv.gz": pandas.read_csv,
        "pairs.jsonl": lambda path: pandas.read_json(path, lines=True),
        "pairs.json": as_json,
        "PAIRS.TSV.XZ": lambda path: pandas.read_csv(path, sep="\t", compression="xz"),
        "pairs.parquet": pandas.read_parquet,
    }.items(),
)
def test_every_real_sentence_has_a_corrupted_copy(
    name: str, read: Callable[[Path], pandas.DataFrame], prose: Path, colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("data", "corrupt", prose, "--sentences", 30, "--out", tmp_path / name, "--json")
    assert code == 0, err
    table = read(tmp_path / name)
    assert list(table.columns) == ["sentence", "label"]
    assert json.loads(out)["sentences"] == len(table)
    real, corrupted = (table[table.label == label].sentence for label in ("real", "corrupted"))
    assert len(real) == len(corrupted) == 30
    assert set(real) <= set(prose.read_text().splitlines())
    assert not set(corrupted) & set(prose.read_text().splitlines())
    code, out, err = colakit("data", "check", "--data", tmp_path / name, *COLUMNS, "--json")
    assert code == 0, err
    assert json.loads(out)["splits"][0]["rows"] == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.tsv"], "no text to read"),
        (["PROSE"], "Name one with --out"),
        (["PROSE", "--out", "folder"], "is not the name of a table"),
        (["missing.txt", "--out", "x.tsv"], "missing.txt"),
    ],
)
def test_invalid_arguments_are_refused(
    words: list[str], message: str, prose: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = colakit("data", "corrupt", *(str(prose) if word == "PROSE" else word for word in words))
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "x.tsv").exists()


def test_a_dry_run_writes_nothing(prose: Path, colakit: Run, tmp_path: Path) -> None:
    code, out, _ = colakit("data", "corrupt", prose, "--out", tmp_path / "x.tsv", "--dry-run")
    assert code == 0
    assert "would write 80 sentences" in out
    assert not (tmp_path / "x.tsv").exists()
