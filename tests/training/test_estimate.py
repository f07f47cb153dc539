"""Measured plans: they change no result, and their stages are recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from stress.torture import run_output

from colakit.cli.app import main

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--set", "transfer.size=0.5", "--set", "transfer.sampler_epochs=1"]


@pytest.fixture(scope="module")
def teacher(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert main([*command("finetune", toy), "--quiet", "--out", str(folder)]) == 0
    return folder


def command(name: str, toy: Path, *more: object) -> list[str]:
    files = ["--base", str(toy / "base"), "--data", str(toy / "corpus"), "--epochs", "1"]
    return [name, *files, *map(str, more)]


def stages(text: str) -> list[tuple[str, str]]:
    """Return name and estimate of the stages that a plan prints."""
    actual = re.findall(r"^stage \d of \d: ([^,]+),.*?([^,]+)$", text, re.MULTILINE)
    return [(name, estimate.strip()) for name, estimate in actual]


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--lora-dropout", "0.1"],
        ["finetune", "--set", "lora.init=pissa", "--set", "finetune.ema_decay=0.9"],
        ["finetune", "--layers-to-transform", "1", "--set", "finetune.base_dropout=0"],
        ["finetune", "--objective", "language-modelling"],
        ["train-scratch"],
    ],
    ids=" ".join,
)
def test_measuring_changes_no_byte_of_a_run(arguments: list[str], toy: Path, tmp_path: Path) -> None:
    name, *more = arguments
    for folder, quiet in (("planned", []), ("not planned", ["--quiet"])):
        assert main([*command(name, toy, *more, *quiet), "--out", str(tmp_path / folder)]) == 0
    assert run_output(tmp_path / "planned") == run_output(tmp_path / "not planned")


def test_a_distillation_is_planned_measured_and_then_cached(
    toy: Path, teacher: Path, colakit: Run, tmp_path: Path
) -> None:
    arguments = [*command("distill", toy, "--teacher", teacher), *SHORT]
    names = ["tuning the sampler", "making sentences", "labelling with teachers", "training", "evaluating"]
    code, out, err = colakit(*arguments, "--dry-run")
    assert code == 0, err
    assert [name for name, _ in stages(out)] == names
    assert "cached" not in out
    assert "time unknown" not in out
    code, _, err = colakit(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    assert [name for name, _ in stages(err)] == names
    for title in ("1 of 5: tuning the sampler", "2 of 5: making sentences", "3 of 5: train, teacher labels"):
        assert title in err
    assert "4 of 5: training" in err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["stages"]) == names
    for stage in summary["stages"].values():
        assert stage["estimated_seconds"] > 0
        assert stage["seconds"] > 0
    assert summary["stages"]["making sentences"]["sentences"] == summary["transfer"]["sentences"] == 108
    code, out, err = colakit(*arguments, "--dry-run")
    assert code == 0, err
    assert [estimate for _, estimate in stages(out)][:3] == ["cached"] * 3
    assert colakit(*arguments, "--quiet", "--out", tmp_path / "quiet")[0] == 0
    assert run_output(tmp_path / "quiet") == run_output(tmp_path / "run")


def test_a_base_that_must_be_downloaded_has_a_plan_without_seconds(
    toy: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, err = colakit("finetune", "--base", "gpt2", "--data", toy / "corpus", "--dry-run")
    assert code == 0, err
    assert "time unknown: the base is not on this machine" in out
