"""Measures the memory of a reader without the memory of the sweep that draws its cases.

    python tests/stress/reader_memory.py "run folder" --cases 1500 --repeat 3

One process draws the cases of `hostile.py` and writes them to disk; another one reads them, and prints its
peak before and after.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hostile import Reader, fuzz, readers

from colakit.errors import ColakitError


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def draw(name: str, num_cases: int, folder: Path) -> None:
    count = Counter[str]()

    def keep(case: Path) -> None:
        shutil.copytree(case, folder / str(count["cases"]))

    fuzz(Reader(readers()[name].cases, keep), num_cases, count)


def read(name: str, repeat: int, folder: Path) -> None:
    reader, before, count = readers()[name], peak_mib(), Counter[str]()
    for case in sorted(folder.iterdir()) * repeat:
        try:
            reader.read(case)
            count["results"] += 1
        except ColakitError:
            count["refusals"] += 1
    print(f"{name}: {dict(count)}, peak {peak_mib()} MiB, {before} MiB of them before the first read")


def run() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of a reader.")
    parser.add_argument("name", choices=list(readers()))
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--repeat", type=int, default=1, help="how often each case is read")
    parser.add_argument("--folder", type=Path, help="of cases that are already drawn")
    options = parser.parse_args()
    if options.folder is not None:
        read(options.name, options.repeat, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="cases-") as name:
        script = str(Path(__file__).resolve())
        os.chdir(name)
        draw(options.name, options.cases, Path(name, "drawn"))
        again = [options.name, "--repeat", str(options.repeat), "--folder", "drawn"]
        subprocess.run([sys.executable, script, *again], check=True)


if __name__ == "__main__":
    run()
