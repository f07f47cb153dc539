"""Real processes, really killed, and what they leave: a short form of `make torture`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torture import left_by

from colakit.engine.checkpoint import Checkpoints

HERE = Path(__file__).resolve().parent
COMMANDS = ("finetune", "distill", "train-scratch", "pretrain")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What a short torture counted, by command."""
    report = tmp_path_factory.mktemp("torture") / "counts.json"
    command = [sys.executable, HERE / "torture.py", "--kills", "24", "--writes", "finetune", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_and_resumed_equals_uninterrupted(
    command: str, counts: dict[str, dict[str, int]]
) -> None:
    assert counts[command]["kills"] >= 6
    assert counts[command].get("differences", 0) == 0


def test_killed_at_every_call_of_a_save_and_resumed_equals_uninterrupted(
    counts: dict[str, dict[str, int]],
) -> None:
    # two files, each written, synced and renamed; the folder synced and renamed; the oldest removed
    assert counts["finetune"]["of one save"] >= 14
    assert counts["finetune"]["inside a write"] >= counts["finetune"]["of one save"]


def workers_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_one_of_two_processes_is_killed_and_the_job_resumes(rank: int, toy: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ("finetune.epochs=2", "finetune.save_every_steps=1", "finetune.log_every=1")
    tuned = [
        *(
            "finetune",
            "--base",
            toy / "base",
            "--data",
            toy / "corpus",
            "--lora-dropout",
            "0.1",
            "--rank",
            "2",
        ),
        *("--precision", "fp32", "--quiet", *(word for s in settings for word in ("--set", s))),
    ]

    def launch(out: str) -> subprocess.Popen[Any]:
        line = [*launcher, "-m", "colakit", *tuned, "--resume", "auto", "--out", tmp_path / out]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    victim = launch("run")
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    deadline = time.monotonic() + 120
    while len(saved.found()) < 2 and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(sorted(workers_of(victim.pid))[rank], signal.SIGKILL)
    _, err = victim.communicate(timeout=120)
    assert victim.returncode != 0, err
    assert not (tmp_path / "run" / "summary.json").exists()
    for out in ("run", "whole"):
        process = launch(out)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
