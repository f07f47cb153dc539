"""The benchmarks run and write what they say; how long anything takes is not asked here."""

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

from colakit.data.batches import Examples
from colakit.data.tokens import Tokens

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PARTS = {  # titles of the tables, and the rows whose ratio is missing because they are what is compared
    "finetuning": (2, "colakit, as it comes"),
    "pretraining": (1, "colakit with AdamW"),
    "commands": (2, "colakit finetune"),
    "students": (1, "colakit, as it comes"),
    "distilling": (1, "colakit distill, 1 epochs"),
    "inference": (4, "student"),
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
        assert {"key", "unit", "more_is_better"} == set(table["figure"])
        for row in table["rows"]:
            assert row["precision"] in ("fp32", "bf16")
            assert row["median"] > 0
            assert len(row["values"]) == 1
            assert row["ratio"] is None or row["ratio"] > 0
    leaders = {row["name"] for table in content["tables"] for row in table["rows"] if row["ratio"] is None}
    assert {PARTS[name][1] for name in parts} <= leaders


def test_the_suite_writes_machine_versions_settings_and_tables(tmp_path: Path) -> None:
    parts = ("finetuning", "students", "inference")
    check(run_suite(*parts, out=tmp_path / "suite.json"), *parts)


@pytest.mark.slow
def test_every_part_of_the_suite_runs(tmp_path: Path) -> None:
    check(run_suite(*PARTS, out=tmp_path / "suite.json"), *PARTS)


def test_both_sides_read_sentences_of_the_corpuss_length(monkeypatch: pytest.MonkeyPatch) -> None:
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
        bench = finetuning.Finetuning(Path(), examples, steps, 32, Path())
        for plan in (bench.plan(), bench.trainers_plan(None), bench.trainers_plan("fp32")):
            assert [len(index) for index in plan] == [32] * (2 * steps + 1)
            read = bench.tokens_per_sentence(plan)["tokens_per_sentence"]
            assert read == pytest.approx(lengths.mean(), rel=0.02)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("measuring")


def test_ways_take_turns_and_ratios_say_how_much_better_ours_is(measuring: ModuleType) -> None:
    turns: list[str] = []

    def way(name: str, figures: list[dict[str, float]], beside: str | None = None) -> Any:
        def run() -> dict[str, float]:
            turns.append(name)
            return figures.pop(0)

        return measuring.Way(name, "fp32", run, beside)

    ways = [
        way("rival", [{"s": 4.0, "rate": 1.0}, {"s": 6.0, "rate": 3.0}, {"s": 50.0, "rate": 2.0}], "ours"),
        way("ours", [{"s": 2.0, "rate": 8.0}, {"s": 3.0, "rate": 9.0}, {"s": 4.0, "rate": 1.0}]),
    ]
    found = measuring.in_turn(ways, 3)
    assert turns == ["rival", "ours"] * 3
    times = measuring.compare("Time", ways, found, measuring.Figure("s", "s"))
    rates = measuring.compare("Rate", ways, found, measuring.Figure("rate", "1/s", more_is_better=True))
    assert [(row.median, row.ratio) for row in times.rows] == [(6, 2), (3, None)]
    assert [(row.median, row.ratio) for row in rates.rows] == [(2, 4), (8, None)]
    assert "| rival | fp32 | 6 | 2.00 times |" in str(times)


def test_a_process_tells_its_time_and_its_own_memory(measuring: ModuleType, tmp_path: Path) -> None:
    held = bytearray(200 * 2**20)  # ours, which the child must not be charged for
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    small = measuring.run_process([sys.executable, "-c", "print(1)"], cache=tmp_path)
    assert small["seconds"] > 0
    assert 2 < small["peak_mib"] < 100
    fill = "held = bytearray(150 * 2**20); held[::4096] = b'x' * len(held[::4096])"
    assert measuring.run_process([sys.executable, "-c", fill], cache=tmp_path)["peak_mib"] > 150


def test_a_process_that_fails_ends_the_benchmark_with_its_words(
    measuring: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        measuring.run_process([sys.executable, "-c", "raise ValueError('no such thing')"], cache=tmp_path)
