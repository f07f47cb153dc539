"""What the benchmarks share: ways of doing one piece of work measured in turn, their table, and its JSON.

A figure is worth something beside another of the same run: machines differ, and are shared. So every table
has one row that the others are compared with, its ways run in turn, and each figure is a median over repeats.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from colakit.runtime.device import is_bf16_faster, resolve_compute
from colakit.storage.run_folder import package_version

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # support.toy, imported after this module
PACKAGES = ("colakit", "torch", "transformers", "peft", "accelerate", "tokenizers")
LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak_mib": peak / 2**20}))
sys.exit(code)
"""  # between us and the child, since a child's peak begins with that of the process that starts it


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work.

    Attributes:
        precision: what matrices are multiplied in, `fp32` or `bf16`.
        run: does it once; returns its figures by name.
        beside: the way of ours that it is compared with; None for that way itself.
    """

    name: str
    precision: str
    run: Callable[[], Mapping[str, float]]
    beside: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure that ways are compared by.

    Attributes:
        key: its name among a way's figures.
        more_is_better: of rates; not of times and memory.
    """

    key: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True)
class Row:
    """A way's figure.

    Attributes:
        values: of each repeat.
        ratio: how many times better the way is that this one is compared with; None for that way itself.
    """

    name: str
    precision: str
    values: list[float]
    median: float
    ratio: float | None


@dataclass(frozen=True)
class Table:
    """Rows of one figure.

    Attributes:
        ours: what the ratios are of.
        aims: what the ratios or medians are meant to be, in words.
    """

    title: str
    figure: Figure
    rows: list[Row]
    ours: str = "colakit"
    aims: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.title}\n",
            f"| | precision | {self.figure.unit} | {self.ours} is |",
            "|---|---|---:|---:|",
        ]
        for row in self.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f} times"
            lines.append(f"| {row.name} | {row.precision} | {written(row.median)} | {ratio} |")
        return "\n".join([*lines, *([f"\nAim: {self.aims}."] if self.aims else [])]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {**vars(self), "figure": vars(self.figure), "rows": [vars(row) for row in self.rows]}

    def median(self, name: str) -> float:
        """Return the median of the row called `name`."""
        return next(row.median for row in self.rows if row.name == name)


def written(value: float) -> str:
    """Write a figure with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_turn(ways: Sequence[Way], repeats: int) -> dict[str, list[Mapping[str, float]]]:
    """Return the figures of every way and repeat; all ways run once before any runs again."""
    found: dict[str, list[Mapping[str, float]]] = {way.name: [] for way in ways}
    for repeat in range(repeats):
        for way in ways:
            found[way.name].append(way.run())
            figures = ", ".join(f"{key} {written(value)}" for key, value in found[way.name][-1].items())
            print(f"{repeat + 1}/{repeats} {way.name}: {figures}", file=sys.stderr, flush=True)
    return found


def compare(
    title: str,
    ways: Sequence[Way],
    found: Mapping[str, Sequence[Mapping[str, float]]],
    figure: Figure,
    **words: str,
) -> Table:
    """Return the table of one figure of what `in_turn` found; ways that lack it are left out.

    Args:
        words: `ours` and `aims` of the table.
    """
    values = {
        name: [run[figure.key] for run in runs] for name, runs in found.items() if figure.key in runs[0]
    }
    medians = {name: statistics.median(numbers) for name, numbers in values.items()}
    rows = []
    for way in ways:
        if way.name not in values:
            continue
        ratio = medians[way.beside] / medians[way.name] if way.beside else None
        if ratio is not None and not figure.more_is_better:
            ratio = 1 / ratio
        rows.append(Row(way.name, way.precision, values[way.name], medians[way.name], ratio))
    return Table(title, figure, rows, **words)


def in_own_process(work: Callable[..., Mapping[str, float]], *arguments: object) -> Mapping[str, float]:
    """Return what `work` returns in a new process: nothing is set there but what it sets itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def run_process(
    command: Sequence[object], *, cache: Path, stdin: str = "", **variables: str
) -> dict[str, float]:
    """Run a command to its end; return its `seconds` and its peak memory, `peak_mib`.

    Args:
        cache: where colakit keeps what it computes.
        variables: more of the environment.

    Raises:
        SystemExit: if it fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLAKIT_CACHE": str(cache), **variables}
    words = [sys.executable, "-S", "-c", LAUNCH, *map(str, command)]
    done = subprocess.run(words, input=stdin, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def colakit(*words: object) -> list[str]:
    """Return the command line of `colakit WORDS`, in the Python that runs this."""
    return [sys.executable, "-m", "colakit", *map(str, words)]


def precision_of(setting: str = "auto") -> str:
    """Return what `--precision SETTING` multiplies in here: `fp32` or `bf16`."""
    return "bf16" if resolve_compute("auto", setting).dtype == torch.bfloat16 else "fp32"


def precisions() -> list[str]:
    """Return what matrices can be multiplied in here: first what `auto` takes, then the other one.

    bf16 is left out where the processor has no instructions for it.
    """
    if precision_of() == "bf16":
        return ["bf16", "fp32"]
    on_cpu = resolve_compute("auto", "auto").device.type == "cpu"
    return ["fp32", "bf16"] if on_cpu and torch.cpu.get_capabilities().get("avx512_bf16") else ["fp32"]


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the programs."""
    device = resolve_compute("auto", "auto").device
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": is_bf16_faster(device)[1],
        "system": platform.platform(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # of the minute before
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def report(tables: Sequence[Table], settings: Mapping[str, Any], out: Path) -> None:
    """Print the tables; write them as JSON, with machine, versions and settings."""
    facts = machine()
    print(", ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    for table in tables:
        print(table)
    content = {
        "machine": facts,
        "versions": {"python": platform.python_version()}
        | {name: package_version(name) for name in PACKAGES},
        "settings": {key: str(value) for key, value in settings.items()},
        "tables": [table.as_dict() for table in tables],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out}")
