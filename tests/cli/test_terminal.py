"""Output in a terminal of 80 columns: every word of a wide one, none broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.cli.app import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    shared = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--epochs", "1", "--quiet"]
    made = {name: folder / name for name in ("finetune", "distill")}
    for name, path in made.items():
        teacher = ["--teacher", str(made["finetune"]), "--set", "transfer.size=0"]
        more = teacher if name == "distill" else []
        assert main([name, *shared, *more, "--out", str(path)]) == 0
    return made


def words(text: str) -> set[str]:
    return set(re.sub("[┏━┳┓┃┡╇┩│└─┴┘:]", " ", text).split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "FINETUNE", "DISTILL", "--group-by", "source"],
        ["evaluate", "FINETUNE"],
        ["evaluate", "--pairs", "PAIRS", "FINETUNE", "BASE"],
        ["data", "check", "--data", "CORPUS"],
        ["doctor", "--dry-run", "--quiet"],
    ],
    ids=" ".join,
)
def test_no_table_breaks_a_word_at_80_columns(
    arguments: list[str],
    toy: Path,
    runs: dict[str, Path],
    colakit: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [json.dumps({"sentence_good": f"Cat {i} sleeps.", "sentence_bad": f"Sleeps {i}."}) for i in "ab"]
    Path("pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    paths = {"CORPUS": toy / "corpus", "BASE": toy / "base", "PAIRS": Path("pairs.jsonl")}
    paths |= {name.upper(): path for name, path in runs.items()}
    shown = {}
    for width in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, err = colakit(*(paths.get(word, word) for word in arguments))
        assert code == 0, err
        shown[width] = words(out)
        tables = [line for line in out.splitlines() if line.startswith(tuple("┏┃┡│└"))]
        assert max(map(len, tables), default=0) <= width
    assert shown[200] <= shown[120]
    assert shown[200] <= shown[80]


def test_paragraphs_of_help_fill_the_terminal(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = colakit("finetune", "--help")
    start = out.index("With --seeds")
    paragraph = [line.strip() for line in out[start : out.index("Options:", start)].strip().splitlines()]
    assert all(len(line) > 60 for line in paragraph[:-1])


def test_help_cuts_no_word_and_states_the_defaults_of_its_command(
    colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[str]] = {}
    for width in ("80", "200"):
        monkeypatch.setenv("COLUMNS", width)
        shown[width] = [
            " ".join(colakit(*words, "--help")[1].split())
            for words in ([], ["finetune"], ["demo"], ["data", "write"], ["plot"])
        ]
    assert shown["80"] == shown["200"]
    everything, finetune, demo, write, plot = shown["80"]
    assert "..." not in everything.partition("Commands:")[2]
    assert "--layers-to-transform integer,…" in finetune
    assert "(default all-linear)" in finetune
    assert demo.count("(default builtin)") == 2
    assert write.count("(default builtin)") == 1
    assert "comparisons of several runs into --out" in plot


def test_files_of_a_run_folder_have_one_mode(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files = [path for run in runs.values() for path in run.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}
