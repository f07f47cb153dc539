"""Names in the files of others: mark-up, formulas and escape codes crash no command and reach no terminal."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from stress.hostile import CORPUS, base_with_tokenizer, good_run

from colakit.data.corpus_files import COLA_FILES

Run = Callable[..., tuple[int, str, str]]

NAMES = ["\x1b[31mred", "[/x]", "$x^{$", r"\x{", "\u202etpircs", "[bold]b", "\x9b1m", "\x07"]
MODEL_NAME = "[red]$x^{$"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


def write_run(folder: Path) -> None:
    """Write the run of a student and its corpus."""
    for name, raw in good_run().items():
        path = folder / MODEL_NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    (folder / "corpus").mkdir()
    for name in COLA_FILES.values():
        (folder / "corpus" / name).write_bytes(CORPUS)


def labels(folder: Path) -> list[str]:
    rows = [f"The cat number {i} sleeps.,{NAMES[i % len(NAMES)]}" for i in range(40)]
    (folder / "own.csv").write_text("\n".join(["text,mood", *rows]) + "\n")
    columns = ["--set", "data.text_column=text", "--set", "data.label_column=mood"]
    return ["data", "check", "--data", "own.csv", *columns]


def splits(folder: Path) -> list[str]:
    (folder / "own.csv").write_text("text,mood\n" + "a b,x\nc d,y\n" * 9)
    named = json.dumps({"train": "own.csv", **dict.fromkeys(NAMES, "own.csv")})
    columns = ["--set", "data.text_column=text", "--set", "data.label_column=mood"]
    return ["data", "check", "--set", f"data.splits={named}", *columns]


def pair_fields(folder: Path) -> list[str]:
    pairs = [
        {"sentence_good": "the cat", "sentence_bad": "cat the", name: value}
        for name in NAMES
        for value in NAMES
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    base = str(base_with_tokenizer())
    return ["evaluate", "--pairs", "pairs.jsonl", "--base", base, "--out", "o"]


def annotations(folder: Path) -> list[str]:
    write_run(folder)
    header = "\t".join(["Sentence", *NAMES])
    rows = [
        f"The cat number {i} sleeps.\t" + "\t".join("01"[(i >> j) % 2] for j in range(len(NAMES)))
        for i in range(40)
    ]
    (folder / "marks.tsv").write_text("\n".join([header, *rows]) + "\n")
    files = ["--data", "corpus", "--annotations", "marks.tsv"]
    return ["evaluate", MODEL_NAME, *files, "--split", "id_dev", "--out", "o"]


def figures(folder: Path) -> list[str]:
    write_run(folder)
    return ["plot", MODEL_NAME, "--out", "o", "--set", "plot.dpi=30"]


def report(folder: Path) -> list[str]:
    write_run(folder)
    return ["report", MODEL_NAME, "--out", "o.html"]


def members(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "own.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(zipfile.ZipInfo(f"{name}/x.tsv"), CORPUS)
    return ["data", "check", "--data", "own.zip"]


def file_names(folder: Path) -> list[str]:
    for name in NAMES:
        (folder / f"{name.replace('/', '')}.tsv").write_bytes(b"x")
    return ["data", "check", "--data", f"{NAMES[0]}.tsv"]


def prompt(folder: Path) -> list[str]:
    return ["generate", "--base", str(base_with_tokenizer()), "--prompt", "the \udcff\ud800"]


def model_name(folder: Path) -> list[str]:
    return ["predict", "--model", f"nowhere/{''.join(NAMES)}"]


def long_name(folder: Path) -> list[str]:
    return ["predict", "--model", "x" * 5000]


def long_base(folder: Path) -> list[str]:
    write_run(folder)
    config = folder / MODEL_NAME / "adapter" / "adapter_config.json"
    content = {**json.loads(config.read_text()), "base_model_name_or_path": "x" * 5000}
    config.write_text(json.dumps(content))
    (config.parent / "colakit.json").unlink()
    return ["predict", "--model", f"{MODEL_NAME}/adapter"]


CASES: list[tuple[Callable[[Path], list[str]], int, str]] = [  # with the exit code and a text of the output
    (labels, 0, r"\x1b[31mred"),
    (splits, 0, r"\x1b[31mred"),
    (pair_fields, 0, r"\x1b[31mred"),
    (annotations, 0, r"\x1b[31mred"),
    (figures, 0, MODEL_NAME),
    (report, 0, "o.html"),
    (members, 2, "own.zip"),
    (file_names, 2, r"\x1b[31mred.tsv"),
    (prompt, 2, r"\udcff"),
    (long_name, 2, "Filenametoolong"),
    (long_base, 2, "Filenametoolong"),
    (model_name, 2, r"nowhere/\x1b[31mred[/x]$x^{$"),
]


@pytest.mark.parametrize(("write", "code", "shown"), CASES)
def test_names_of_others_are_printed_as_plain_text(
    write: Callable[[Path], list[str]], code: int, shown: str, colakit: Run, tmp_path: Path
) -> None:
    actual, out, err = colakit(*write(tmp_path))
    assert actual == code, err
    assert shown in re.sub(r"\s+", "", out + err)
    assert "Traceback" not in err
    assert not RAW.search(out + err.replace("\r", "")), RAW.search(out + err)
    assert code == 0 or "error: " in err
