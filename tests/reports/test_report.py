"""`report`: its figures are those of `evaluate`, its sentences follow from them, and names stay text."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from colakit.cli.app import main
from colakit.errors import ColakitError
from colakit.evaluation.comparison import GroupRow, PairRow, SplitComparison
from colakit.evaluation.metrics import Interval
from colakit.evaluation.tables import format_interval
from colakit.reports import writers
from colakit.reports.conclusions import control_verdicts
from colakit.reports.document import (
    Bullets,
    Commands,
    Document,
    Formula,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
)
from colakit.reports.writers import write_report, write_tables

Run = Callable[..., tuple[int, str, str]]
NAMES = [
    "$x^2$ 100 %",
    r"\x{y}",
    "#let a = 1",
    "_a_ *b* `c`",
    "[d](e) <f>",
    "- g",
    "“h” ~ @i",
    "…",
    "中文",
    "a|b",
]


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a teacher, a student, its control and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--quiet", "--device", "cpu"]
    common += ["--set", f"cache={folder / 'cache'}"]
    student = ["--set", "student_training.max_steps=20", "--set", "transfer.size=0", "--hidden-size", "8"]
    teacher = str(folder / "finetune-0")
    for seed in ("0", "1"):
        words = ["finetune", *common, "--epochs", "1", "--rank", "2", "--seed", seed]
        assert main([*words, "--out", str(folder / f"finetune-{seed}")]) == 0
    assert main(["distill", *common, *student, "--teacher", teacher, "--out", str(folder / "distill")]) == 0
    assert main(["train-scratch", *common, *student, "--out", str(folder / "control")]) == 0
    data = ["--data", str(toy / "corpus"), "--quiet"]
    assert main(["baseline", *data, "--out", str(folder / "baseline")]) == 0
    return [folder / name for name in ("finetune-0", "finetune-1", "distill", "control", "baseline")]


def test_its_figures_are_those_of_evaluate(runs: list[Path], colakit: Run, tmp_path: Path) -> None:
    code, _, err = colakit("report", *runs, "--out", tmp_path / "report.pdf")
    assert code == 0, err
    code, out, err = colakit("evaluate", *runs, "--json")
    assert code == 0, err
    pypdf = pytest.importorskip("pypdf")
    pages = pypdf.PdfReader(tmp_path / "report.pdf").pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    for split in json.loads(out)["splits"].values():
        for row in split["groups"]:
            deviation = [] if row["accuracy_sd"] is None else [f"± {100 * row['accuracy_sd']:.2f}"]
            accuracy = " ".join([f"{100 * row['accuracy_mean']:.2f}", *deviation])
            assert f"{row['group']} {row['num_seeds']} {accuracy} {row['mcc_mean']:.3f}" in text
        for pair in split["pairs"]:
            assert format_interval(Interval(**pair["mcc"]), 1, 3, signed=True) in text


def test_equal_runs_give_equal_bytes(runs: list[Path], colakit: Run, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        code, _, err = colakit("report", runs[0], runs[4], "--out", folder / "report.md", "--quiet")
        assert code == 0, err
        for suffix in writers.FORMATS:
            write_report(every_block(), folder / f"blocks.{suffix}")
    contents = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) > len(writers.FORMATS) + 4  # with figures


def test_html_needs_no_other_file(tmp_path: Path) -> None:
    write_report(every_block(), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_settings_stand_with_their_origin(runs: list[Path], colakit: Run, tmp_path: Path) -> None:
    code, _, err = colakit("report", *runs, "--tables", "csv,tex", "--out", tmp_path)
    assert code == 0, err
    rows = list(csv.reader(io.StringIO((tmp_path / "settings.csv").read_text(encoding="utf-8"))))
    assert ["finetune (GPT-2, rank 2)", "lora.rank", "2", "--rank"] in rows
    assert ["distill (lstm)", "transfer.size", "0.0", "--set transfer.size=0"] in rows
    assert r"\toprule" in (tmp_path / "results-id_dev.tex").read_text(encoding="utf-8")


def test_names_of_splits_do_not_select_tables(
    runs: list[Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    file = toy / "corpus" / "in_domain_dev.tsv"
    splits = ["--set", f"data.splits.teachers={file}", "--split", "teachers"]
    code, _, err = colakit("report", runs[0], runs[4], *splits, "--tables", "csv", "--out", tmp_path / "out")
    assert code == 0, err
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    expected = {"results-teachers", "differences-teachers", "calibration-teachers"}
    assert names == {"data", "settings", "parameters", "cost"} | expected


def every_block() -> Document:
    """A document of all kinds of blocks, whose texts are mark-up in one of the languages."""
    table = ("; ".join(NAMES), NAMES, [NAMES, NAMES[::-1]])
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    blocks = [
        Heading(NAMES[0]),
        Paragraph(NAMES[1]),
        Bullets(NAMES),
        Formula(r"\frac{\alpha}{R}", "alpha / R"),
        Commands([f"colakit evaluate '{name}'" for name in NAMES]),
        TableBlock("$a$/../b", table),
        Picture("#fig", NAMES[3], figure),
    ]
    return Document("".join(NAMES), NAMES, blocks)


def test_names_that_are_markup_stay_text(tmp_path: Path) -> None:
    for suffix in writers.FORMATS:
        write_report(every_block(), tmp_path / f"report.{suffix}")
    pypdf = pytest.importorskip("pypdf")
    pages = pypdf.PdfReader(tmp_path / "report.pdf").pages
    text = "".join("".join(page.extract_text().split()) for page in pages)
    for name in NAMES:
        if name.isascii():
            assert text.count("".join(name.split())) >= 6, name
    names = {path.name for path in write_tables(every_block(), tmp_path / "tables", ["csv", "tex"])}
    assert names == {"%24a%24%2F..%2Fb.csv", "%24a%24%2F..%2Fb.tex"}
    table = (tmp_path / "tables" / "%24a%24%2F..%2Fb.csv").read_text(encoding="utf-8")
    assert list(csv.reader(io.StringIO(table)))[1] == NAMES


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    write_report(every_block(), tmp_path / "report.tex")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 1000


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.2, 0.1, 0.3), "distilling helped"),
        ((-0.2, -0.3, -0.1), "distilling did harm"),
        ((0.2, -0.1, 0.5), "no effect of distilling is shown"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_distilling_helps_only_where_the_interval_excludes_zero(
    interval: tuple[float, float, float], verdict: str, swapped: bool
) -> None:
    names = ["distill (lstm)", "train-scratch (lstm)"]
    value, low, high = interval
    mcc = Interval(value, low, high)
    if swapped:
        names, mcc = names[::-1], Interval(-value, -high, -low)
    groups = tuple(GroupRow(name, 1, 0.7, None, 0.1, None, 0.69, 0) for name in names)
    pair = PairRow(*names, replace(mcc), mcc, 0.15, (0.5,))
    (sentence,) = control_verdicts(SplitComparison("dev", (), groups, (pair,)))
    assert verdict in sentence
    assert f"distill (lstm) minus train-scratch (lstm) is {value:+.3f}" in sentence


def test_a_wrong_suffix_or_an_unfinished_run_is_refused(
    runs: list[Path], colakit: Run, tmp_path: Path
) -> None:
    for words, message in (
        ([*runs, "--out", tmp_path / "report.doc"], ".pdf, .typ, .tex, .md, .html"),
        ([*runs, "--tables", "xls"], "tex, csv"),
        ([tmp_path], "is not a finished run"),
    ):
        code, _, err = colakit("report", *words)
        assert code == 2
        assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "typst", None)
    with pytest.raises(ColakitError) as refusal:
        write_report(every_block(), tmp_path / "report.pdf")
    assert refusal.value.hint == "Install it with: pip install 'colakit[report]'"
    assert not (tmp_path / "report.pdf").exists()


def test_runs_of_different_data_are_not_reported_together(
    runs: list[Path], toy: Path, colakit: Run, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(toy / "corpus", corpus)
    path = corpus / "in_domain_dev.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:40]), encoding="utf-8")
    words = ["--data", corpus, "--quiet", "--out", tmp_path / "baseline"]
    assert colakit("baseline", *words)[0] == 0
    code, _, err = colakit("report", runs[0], tmp_path / "baseline", "--out", tmp_path / "report.md")
    assert code == 2
    assert f"was trained on {toy / 'corpus'}" in " ".join(err.split())
