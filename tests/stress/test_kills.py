"""Real processes, really killed, and what they leave: a short form of `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stress.torture import left_by
from support.killing import TwoProcesses

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.xdist_group("kills")  # one process counts once for all of them
COMMANDS = ("finetune", "distill", "train-scratch", "pretrain")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What a short torture counted, by command."""
    report = tmp_path_factory.mktemp("torture") / "counts.json"
    command = [
        sys.executable,
        HERE / "torture.py",
        "--kills",
        "24",
        "--writes",
        "train-scratch",
        "--json",
        report,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_and_resumed_equals_uninterrupted(
    command: str, counts: dict[str, dict[str, int]]
) -> None:
    assert counts[command]["kills"] >= 5
    assert counts[command].get("differences", 0) == 0


def test_killed_at_every_call_of_a_save_and_of_the_end_and_resumed_equals_uninterrupted(
    counts: dict[str, dict[str, int]],
) -> None:
    # 16 calls: two files written, synced and renamed, their folder synced and renamed, the oldest removed;
    # then predictions, ckpt.pt and the summary, each written, synced and renamed
    found = counts["train-scratch"]
    assert found["last calls"] >= 16 + 3 * 4
    assert found["inside a write"] >= found["last calls"]
    assert found.get("differences", 0) == 0


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_processes_is_killed_and_the_job_resumes(rank: int, toy: Path, tmp_path: Path) -> None:
    settings = ("finetune.epochs=2", "finetune.save_every_steps=1", "finetune.log_every=1")
    tuned = [
        *("finetune", "--base", str(toy / "base"), "--data", str(toy / "corpus"), "--lora-dropout", "0.1"),
        *("--rank", "2", "--precision", "fp32", *(word for s in settings for word in ("--set", s))),
    ]
    job = TwoProcesses(tuned, tmp_path / "run")
    job.kill(rank, after_seconds=0.1)
    assert not (tmp_path / "run" / "summary.json").exists()
    job.finish()
    TwoProcesses(tuned, tmp_path / "whole").finish()
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
