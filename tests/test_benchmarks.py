"""The benchmarks run and write their tables. Timings are not tested."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.exported import write_gpt, write_student

from colakit.data.batches import Examples
from colakit.data.tokens import Tokens

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PARTS = {  # number of tables, and a reference row
    "finetuning": (2, "colakit, defaults"),
    "llama": (2, "colakit, defaults"),
    "pretraining": (1, "colakit with AdamW"),
    "commands": (2, "colakit finetune"),
    "students": (1, "colakit, defaults"),
    "distilling": (1, "colakit distill, 1 epochs"),
    "inference": (7, "student"),
    "startup": (1, "colakit --help"),
}


def run_suite(*parts: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, FOLDER / "suite.py", "--scale", "smoke", "--parts", *parts, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(out.read_text(encoding="utf-8"))
    for table in content["tables"]:
        assert table["title"] in done.stdout
    return content


def check(content: dict[str, Any], *parts: str) -> None:
    assert {"processor", "cores", "threads", "device", "bf16"} <= set(content["machine"])
    assert content["versions"]["torch"]
    assert content["settings"]["scale"] == "smoke"
    assert len(content["tables"]) == sum(PARTS[name][0] for name in parts)
    for table in content["tables"]:
        assert {"key", "unit", "higher_is_better"} == set(table["metric"])
        for row in table["rows"]:
            assert row["precision"] in ("fp32", "bf16", "int8")
            assert row["median"] > 0
            assert len(row["values"]) == 1
            assert row["ratio"] is None or row["ratio"] > 0
    references = {row["name"] for table in content["tables"] for row in table["rows"] if row["ratio"] is None}
    assert {PARTS[name][1] for name in parts} <= references


@pytest.mark.slow
def test_suite_writes_machine_versions_settings_and_tables(tmp_path: Path) -> None:
    parts = ("finetuning", "llama", "students", "inference")
    check(run_suite(*parts, out=tmp_path / "suite.json"), *parts)


@pytest.mark.slow
def test_every_part_of_the_suite_runs(tmp_path: Path) -> None:
    check(run_suite(*PARTS, out=tmp_path / "suite.json"), *PARTS)


@pytest.mark.slow
def test_trained_models_are_measured_beside_each_other(toy: Path, tmp_path: Path) -> None:
    student, teacher = write_student(tmp_path / "student", toy), write_gpt(tmp_path / "teacher", toy)
    command = [sys.executable, FOLDER / "trained.py", "--student", student, "--teacher", teacher]
    command += ["--data", toy / "corpus", "--repeats", "1", "--out", tmp_path / "trained.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rates, files = json.loads((tmp_path / "trained.json").read_text(encoding="utf-8"))["tables"]
    assert [row["precision"] for row in rates["rows"][:3]] == ["fp32", "fp32", "int8"]
    assert {"teacher, fp32", "teacher, int8"} <= {row["name"] for row in rates["rows"] if row["ratio"]}
    size = {row["name"]: row["median"] for row in files["rows"]}
    assert size["student, its own file"] == (student / "student.safetensors").stat().st_size / 1e6
    assert size["student, ONNX Runtime, int8"] < size["student, ONNX Runtime"]
    assert size["teacher, ONNX int8"] < size["teacher, ONNX"]


def test_measured_batches_have_the_mean_length_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    finetuning = importlib.import_module("finetuning")
    generator = np.random.default_rng(0)
    lengths = np.concatenate([generator.integers(1, 9, size=1500), generator.integers(9, 46, size=500)])
    generator.shuffle(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    examples = Examples(
        Tokens(np.zeros(offsets[-1], dtype=np.int32), offsets), np.zeros(2000, dtype=np.int64)
    )
    for steps in (4, 8):
        benchmark = finetuning.Finetuning(Path(), examples, steps, 32, Path())
        for plan in (benchmark.colakit_plan(), benchmark.trainer_plan(None), benchmark.trainer_plan("fp32")):
            assert [len(index) for index in plan] == [32] * (2 * steps + 1)
            mean_length = benchmark.tokens_per_sentence(plan)["tokens_per_sentence"]
            assert mean_length == pytest.approx(lengths.mean(), rel=0.02)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("harness")


def test_variants_alternate_and_ratios_are_relative_to_the_reference(harness: ModuleType) -> None:
    turns: list[str] = []

    def variant(name: str, values: list[dict[str, float]], reference: str | None = None) -> Any:
        def run() -> dict[str, float]:
            turns.append(name)
            return values.pop(0)

        return harness.Variant(name, "fp32", run, reference)

    variants = [
        variant(
            "baseline",
            [{"s": 4.0, "rate": 1.0}, {"s": 6.0, "rate": 3.0}, {"s": 50.0, "rate": 2.0}],
            "colakit",
        ),
        variant("colakit", [{"s": 2.0, "rate": 8.0}, {"s": 3.0, "rate": 9.0}, {"s": 4.0, "rate": 1.0}]),
    ]
    measurements = harness.run_alternating(variants, 3)
    assert turns == ["baseline", "colakit"] * 3
    times = harness.compare("Time", variants, measurements, harness.Metric("s", "s"))
    rate = harness.Metric("rate", "1/s", higher_is_better=True)
    rates = harness.compare("Rate", variants, measurements, rate)
    assert [(row.median, row.ratio) for row in times.rows] == [(6, 2), (3, None)]
    assert [(row.median, row.ratio) for row in rates.rows] == [(2, 4), (8, None)]
    assert "| baseline | fp32 | 6 | 2.00 times |" in str(times)


def test_run_command_measures_time_and_memory_of_the_child_only(harness: ModuleType, tmp_path: Path) -> None:
    held = bytearray(200 * 2**20)  # memory of this process, which must not count
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    small = harness.run_command([sys.executable, "-c", "print(1)"], cache=tmp_path)
    assert small["seconds"] > 0
    assert 2 < small["peak_mib"] < 100
    fill = "held = bytearray(150 * 2**20); held[::4096] = b'x' * len(held[::4096])"
    assert harness.run_command([sys.executable, "-c", fill], cache=tmp_path)["peak_mib"] > 150


def test_failing_command_ends_the_benchmark_with_its_error(harness: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        harness.run_command([sys.executable, "-c", "raise ValueError('no such thing')"], cache=tmp_path)
