"""Killed and resumed runs equal uninterrupted ones: a short form of `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stress.torture import run_output
from support.killing import TwoProcesses

HERE = Path(__file__).resolve().parent
COMMANDS = ("finetune", "distill", "train-scratch", "pretrain")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Counts of a short run of `torture.py`, by command."""
    report = tmp_path_factory.mktemp("torture") / "counts.json"
    options = ["--kills", "24", "--writes", "train-scratch", "--json", report]
    command = [sys.executable, HERE / "torture.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_and_resumed_equals_uninterrupted(
    command: str, counts: dict[str, dict[str, int]]
) -> None:
    assert counts[command]["kills"] >= 5
    assert counts[command].get("differences", 0) == 0


def test_killed_at_every_call_of_a_save_and_resumed_equals_uninterrupted(
    counts: dict[str, dict[str, int]],
) -> None:
    # a checkpoint takes 16 calls: write, sync and rename two files, sync and rename their folder, remove the
    # oldest; then predictions, ckpt.pt and summary are each written, synced and renamed
    count = counts["train-scratch"]
    assert count["last calls"] >= 16 + 3 * 4
    assert count["inside a write"] >= count["last calls"]
    assert count.get("differences", 0) == 0


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_processes_killed_and_resumed_equals_uninterrupted(
    rank: int, toy: Path, tmp_path: Path
) -> None:
    settings = ("finetune.epochs=2", "finetune.save_every_steps=1", "finetune.log_every=1")
    command = [
        *("finetune", "--base", str(toy / "base"), "--data", str(toy / "corpus"), "--lora-dropout", "0.1"),
        *("--rank", "2", "--precision", "fp32", *(word for s in settings for word in ("--set", s))),
    ]
    job = TwoProcesses(command, tmp_path / "run")
    job.kill(rank, after_seconds=0.1)
    assert not (tmp_path / "run" / "summary.json").exists()
    job.finish()
    TwoProcesses(command, tmp_path / "whole").finish()
    assert run_output(tmp_path / "run") == run_output(tmp_path / "whole")
