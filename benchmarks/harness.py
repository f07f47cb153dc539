"""Shared code of the benchmarks: run variants alternately, tabulate their medians, write JSON.

Timings are comparable only within one run on one machine. So every table has a reference row, the variants
run alternately, and each value is the median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from colakit.runtime.device import is_bf16_faster, resolve_compute
from colakit.storage.run_folder import package_version

PACKAGES = ("colakit", "torch", "transformers", "peft", "accelerate", "tokenizers")
LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak_mib": peak / 2**20}))
sys.exit(code)
"""  # a small launcher process, because a child's peak memory starts at that of its parent

Measurements = Mapping[str, Sequence[Mapping[str, float]]]
"""Values by metric key, for each repeat of each variant."""


@dataclass(frozen=True)
class Variant:
    """One implementation or setting of the measured work.

    Attributes:
        precision: of matrix products, `fp32` or `bf16`.
        run: does the work once and returns its values by metric key.
        reference: name of the variant that this one is compared with; None for a reference itself.
    """

    name: str
    precision: str
    run: Callable[[], Mapping[str, float]]
    reference: str | None = None


@dataclass(frozen=True)
class Metric:
    """A measured quantity."""

    key: str
    unit: str
    higher_is_better: bool = False


SECONDS = Metric("seconds", "s")
PEAK_MEMORY = Metric("peak_mib", "MiB of peak memory")
DEVICE_MEMORY = Metric("device_mib", "MiB of peak device memory")
SENTENCE_RATE = Metric("sentences_per_second", "sentences/s", higher_is_better=True)
TOKEN_RATE = Metric("tokens_per_second", "tokens/s", higher_is_better=True)


@dataclass(frozen=True)
class Row:
    """One variant's values.

    Attributes:
        values: one for each repeat.
        ratio: factor by which the reference is better; None for a reference itself.
    """

    name: str
    precision: str
    values: list[float]
    median: float
    ratio: float | None


@dataclass(frozen=True)
class Table:
    """All variants' values of one metric.

    Attributes:
        reference: column title of the ratios.
        target: the intended ratios or medians, in words.
    """

    title: str
    metric: Metric
    rows: list[Row]
    reference: str = "colakit"
    target: str = ""

    def __str__(self) -> str:
        compared = any(row.ratio is not None for row in self.rows)
        lines = [
            f"{self.title}\n",
            f"| | precision | {self.metric.unit} |" + f" {self.reference} is better by |" * compared,
            "|---|---|---:|" + "---:|" * compared,
        ]
        for row in self.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f} times"
            line = f"| {row.name} | {row.precision} | {format_value(row.median)} |"
            lines.append(line + f" {ratio} |" * compared)
        return "\n".join([*lines, *([f"\nTarget: {self.target}."] if self.target else [])]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {**vars(self), "metric": vars(self.metric), "rows": [vars(row) for row in self.rows]}


def format_value(value: float) -> str:
    """Format a value with three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run_alternating(variants: Sequence[Variant], repeats: int) -> Measurements:
    """Run every variant once, then every variant again, and so on; return all values."""
    measurements: dict[str, list[Mapping[str, float]]] = {variant.name: [] for variant in variants}
    for repeat in range(repeats):
        for variant in variants:
            values = variant.run()
            measurements[variant.name].append(values)
            line = ", ".join(f"{key} {format_value(value)}" for key, value in values.items())
            print(f"{repeat + 1}/{repeats} {variant.name}: {line}", file=sys.stderr, flush=True)
    return measurements


def compare(
    title: str, variants: Sequence[Variant], measurements: Measurements, metric: Metric, **words: str
) -> Table:
    """Return the table of one metric, without the variants that did not measure it.

    Args:
        words: `reference` and `target` of the table.
    """
    values = {
        name: [repeat[metric.key] for repeat in repeats]
        for name, repeats in measurements.items()
        if metric.key in repeats[0]
    }
    medians = {name: statistics.median(numbers) for name, numbers in values.items()}
    rows = []
    for variant in variants:
        if variant.name not in values:
            continue
        ratio = medians[variant.reference] / medians[variant.name] if variant.reference else None
        if ratio is not None and not metric.higher_is_better:
            ratio = 1 / ratio
        rows.append(Row(variant.name, variant.precision, values[variant.name], medians[variant.name], ratio))
    return Table(title, metric, rows, **words)


def measure(title: str, variants: Sequence[Variant], repeats: int, metric: Metric, **words: str) -> Table:
    """Run the variants alternately; return the table of one metric. See `compare`."""
    return compare(title, variants, run_alternating(variants, repeats), metric, **words)


class StepTimer:
    """Measures the throughput of training steps and, on a GPU, peak memory.

    Args:
        metric: of the throughput.
        warm_up: number of first steps that are not measured.
    """

    def __init__(self, metric: Metric = SENTENCE_RATE, warm_up: int = 1) -> None:
        self.metric = metric
        self.warm_up = warm_up
        self.started = self.last = 0.0
        self.count = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self, count: int) -> None:
        """Record the end of a step over `count` sentences or tokens."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.last = time.perf_counter()
        self.warm_up -= 1
        if self.warm_up == 0:
            self.started = self.last
        elif self.warm_up < 0:
            self.count += count

    def values(self) -> dict[str, float]:
        """Return the throughput and, on a GPU, peak memory in MiB."""
        values = {self.metric.key: self.count / (self.last - self.started)}
        if torch.cuda.is_available():
            values[DEVICE_MEMORY.key] = torch.cuda.max_memory_allocated() / 2**20
        return values


def run_in_new_process(work: Callable[..., Mapping[str, float]], *arguments: object) -> Mapping[str, float]:
    """Call `work` in a fresh process, so that process-wide settings of one variant do not reach another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def run_command(command: Sequence[object], *, cache: Path, stdin: str = "") -> dict[str, float]:
    """Run a command to its end; return `seconds` and `peak_mib`.

    Args:
        cache: colakit's cache folder.

    Raises:
        SystemExit: if the command fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLAKIT_CACHE": str(cache)}
    words = [sys.executable, "-S", "-c", LAUNCH, *map(str, command)]
    done = subprocess.run(words, input=stdin, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def colakit_command(*words: object) -> list[str]:
    """Return the command line of `colakit WORDS` in this Python."""
    return [sys.executable, "-m", "colakit", *map(str, words)]


def auto_precision() -> str:
    """Return the precision of matrix products under `--precision auto`: `fp32` or `bf16`."""
    return "bf16" if resolve_compute("auto", "auto").dtype == torch.bfloat16 else "fp32"


def available_precisions() -> list[str]:
    """Return the precision of `auto`, then the other one (bf16 only if the processor supports it)."""
    if auto_precision() == "bf16":
        return ["bf16", "fp32"]
    on_cpu = resolve_compute("auto", "auto").device.type == "cpu"
    return ["fp32", "bf16"] if on_cpu and torch.cpu.get_capabilities().get("avx512_bf16") else ["fp32"]


def machine_info() -> dict[str, Any]:
    """Return hardware, system and load."""
    device = resolve_compute("auto", "auto").device
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": is_bf16_faster(device)[1],
        "system": platform.platform(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # average of the last minute
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def make_parser(doc: str | None, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with `--out` and the named options of `OPTIONS`.

    Args:
        doc: docstring of the module; its first line is the description.
        name: of the benchmark; names the file of its results.
        defaults: the options to add, with their defaults.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for option, default in defaults.items():
        parser.add_argument(f"--{option.replace('_', '-')}", default=default, **OPTIONS[option])
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser


OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "help": "corpus; default: the built-in one"},
    "sentences": {"type": int, "help": "size of the train split; default: all"},
    "epochs": {"type": int, "help": "epochs of colakit's command"},
    "steps": {"type": int, "help": "measured steps a repeat"},
    "batch_size": {"type": int, "help": "sentences (or windows of text) a step"},
    "repeats": {"type": int, "help": "number of measurements; the table shows their median"},
}


def report(tables: Sequence[Table], settings: Mapping[str, Any], out: Path) -> None:
    """Print the tables and write them as JSON, with machine, package versions and settings."""
    machine = machine_info()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()) + "\n")
    for table in tables:
        print(table)
    content = {
        "machine": machine,
        "versions": {"python": platform.python_version()}
        | {name: package_version(name) for name in PACKAGES},
        "settings": {key: str(value) for key, value in settings.items()},
        "tables": [table.as_dict() for table in tables],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out}")
