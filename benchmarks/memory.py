"""Peak memory of `data check` and `predict`, in processes of their own, on tables of growing length.

python benchmarks/memory.py [LINES ...]        a million by default, and a hundredth of it to compare with

The table is CoLA's layout with 60 characters a line, all sentences different; the model is a tiny student.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import colakit, run_process
from support.toy import write_base, write_corpus

from colakit.cli.app import main


def write_table(path: Path, lines: int) -> None:
    """Write a table of `lines` different sentences."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            mark = number % 2
            file.write(f"made\t{mark}\t\tThe old dogs of house {number:09d} see the cat again.\n")


def run() -> None:
    """Print a row for each command and length."""
    lengths = [int(word) for word in sys.argv[1:]] or [10_000, 1_000_000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", sizes={"train": 240, "id_dev": 40, "ood_dev": 40})
        write_base(folder / "base", steps=20, width=32)
        data = ["--base", str(folder / "base"), "--data", str(folder / "corpus"), "--epochs", "1", "--quiet"]
        main(["train-scratch", *data, "--hidden-size", "8", "--out", str(folder / "run")])
        print("| command | lines | MB of text | peak MiB | s |\n| --- | ---: | ---: | ---: | ---: |")
        for lines in lengths:
            table, text = folder / "table.tsv", folder / "table.txt"
            write_table(table, lines)
            text.write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
            size = table.stat().st_size / 1e6
            check = ["data", "check", "--data", str(table)]
            predict = ["predict", "--model", str(folder / "run"), str(text), "--out", str(folder / "out")]
            for command, arguments in (("data check", check), ("predict", predict)):
                line = colakit(*arguments, "--device", "cpu", "--quiet")
                found = run_process(line, cache=folder / "cache")
                figures = f"{found['peak_mib']:.0f} | {found['seconds']:.0f}"
                print(f"| {command} | {lines:,} | {size:.1f} | {figures} |", flush=True)


if __name__ == "__main__":
    run()
