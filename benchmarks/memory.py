"""Peak memory and time of `data check` and `predict` on tables of growing length, and of `finetune`.

    python benchmarks/memory.py [LINES ...]        default: 10,000 and 1,000,000
    python benchmarks/memory.py finetune [SHAPE [PRECISION]]   default: llama-360m, SmolLM2-360M's, auto

Each command runs in a process of its own. The tables have CoLA's layout, 60 characters a line and no
duplicate sentences; the model is a tiny student with random weights. `finetune` trains rank 8 on all linear
layers, eight steps of 32 sentences of CoLA (the built-in corpus if CoLA does not lie beside the checkout).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness import colakit_command, run_command
from workspaces import make_workspace, real_cola, save_random_student


def main() -> None:
    """Print a row for each command and length."""
    if sys.argv[1:2] == ["finetune"]:
        measure_finetune(*sys.argv[2:])
        return
    lengths = [int(word) for word in sys.argv[1:]] or [10_000, 1_000_000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_workspace(folder, "tiny").base
        student = save_random_student(base, folder / "student", hidden_size=8)
        print("| command | lines | MB of text | peak MiB | s |\n| --- | ---: | ---: | ---: | ---: |")
        for lines in lengths:
            table, text = folder / "table.tsv", folder / "table.txt"
            for path in (table, text):
                write_table(path, lines)
            check = colakit_command("data", "check", "--data", table)
            predict = colakit_command("predict", "--model", student, text, "--out", folder / "out")
            for command, words in (("data check", check), ("predict", predict)):
                values = run_command([*words, "--device", "cpu", "--quiet"], cache=folder / "cache")
                megabytes = f"{table.stat().st_size / 1e6:.1f}"
                cells = [command, f"{lines:,}", megabytes, f"{values['peak_mib']:.0f}"]
                print(f"| {' | '.join(cells)} | {values['seconds']:.0f} |", flush=True)


def measure_finetune(shape: str = "llama-360m", precision: str = "auto") -> None:
    """Print the peak memory of eight steps on a base of `shape` with random weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = make_workspace(
            folder, shape, data=real_cola(), num_sentences=285
        )  # 9 steps, 1 in 10 for val
        options = ["--base", workspace.base, "--data", workspace.data, "--rank", 8, "--batch-size", 32]
        options += ["--precision", precision]
        command = colakit_command("finetune", *options, "--epochs", 1, "--out", folder / "run", "--quiet")
        values = run_command(command, cache=folder / "cache")
    print(f"finetune, {shape}, {precision}: peak {values['peak_mib']:.0f} MiB, {values['seconds']:.0f} s")


def write_table(path: Path, lines: int) -> None:
    """Write a table of `lines` different sentences."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            sentence = f"The old dogs of house {number:09d} see the cat again."
            file.write(f"made\t{number % 2}\t\t{sentence}\n")


if __name__ == "__main__":
    main()
