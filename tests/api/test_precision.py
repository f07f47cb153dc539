"""`finetune --precision auto` on a CPU: int8 where it was measured to be faster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from colakit.api import precision as api_precision
from colakit.api.precision import MIN_SPEEDUP

Run = Callable[..., tuple[int, str, str]]


class Clock:
    """Stands for `int8_speedup`: returns a given value and counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
        self.speedup, self.calls = speedup, 0
        monkeypatch.setattr(api_precision, "int8_speedup", self)
        monkeypatch.setattr(api_precision, "MIN_WIDTH", 1)

    def __call__(self, compute: object, shape: tuple[int, int]) -> float:
        self.calls += 1
        return self.speedup


@pytest.fixture
def options(toy: Path, tmp_path: Path) -> list[object]:
    words = ["--base", toy / "base", "--data", toy / "corpus", "--device", "cpu", "--epochs", 1]
    return [*words, "--set", f"cache={tmp_path / 'cache'}"]


def precision_of(run: Path) -> tuple[str, str]:
    """Return the precision in the settings of a run, and what computed it."""
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    return settings.get("precision", "auto"), json.loads((run / "environment.json").read_text())["dtype"]


def test_the_faster_precision_is_chosen_once_and_recorded(
    options: list[object], tmp_path: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, MIN_SPEEDUP)
    for name in ("one", "two"):
        assert colakit("finetune", *options, "--out", tmp_path / name)[0] == 0
    assert clock.calls == 1
    chosen, computed = precision_of(tmp_path / "one")
    assert chosen == "int8"
    assert "int8" in computed
    origins = json.loads((tmp_path / "one" / "environment.json").read_text())["origins"]
    assert f"measured {MIN_SPEEDUP:.2f} times" in origins["precision"]

    clock.speedup = MIN_SPEEDUP - 0.01
    cache = ["--set", f"cache={tmp_path / 'other cache'}"]
    assert colakit("finetune", *options, *cache, "--out", tmp_path / "slow")[0] == 0
    assert precision_of(tmp_path / "slow")[0] == "auto"


def test_runs_of_several_seeds_get_the_choice_of_their_command(
    options: list[object], tmp_path: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, MIN_SPEEDUP)
    assert colakit("finetune", *options, "--seeds", "0,1", "--out", tmp_path / "runs")[0] == 0
    computed = [precision_of(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    assert [chosen for chosen, _ in computed] == ["int8", "int8"]
    assert all("int8" in used for _, used in computed)


@pytest.mark.parametrize(
    "words",
    [
        ["--precision", "fp32"],
        ["--method", "full"],
        ["--set", "finetune.from_scratch=true", "--method", "full"],
    ],
    ids=["fp32", "full", "from scratch"],
)
def test_other_trainings_are_not_measured(
    words: list[str], options: list[object], tmp_path: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, MIN_SPEEDUP)
    assert colakit("finetune", *options, *words, "--out", tmp_path / "run")[0] == 0
    assert clock.calls == 0
    assert "int8" not in precision_of(tmp_path / "run")[1]


def test_a_narrow_base_is_not_measured(
    options: list[object], tmp_path: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, MIN_SPEEDUP)
    monkeypatch.setattr(api_precision, "MIN_WIDTH", 10_000)
    assert colakit("finetune", *options, "--out", tmp_path / "run")[0] == 0
    assert clock.calls == 0
    assert precision_of(tmp_path / "run")[0] == "auto"


def test_a_dry_run_measures_and_stores_nothing(
    options: list[object], tmp_path: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, MIN_SPEEDUP)
    code, out, _ = colakit("finetune", *options, "--dry-run", "--json")
    assert code == 0
    assert clock.calls == 1
    assert "int8" in json.loads(out)["compute"]
    assert not (tmp_path / "cache").exists()


def test_doctor_says_what_is_chosen_and_why(
    options: list[object], colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colakit.cli.commands.doctor._answers", lambda url: "not asked in a test")
    Clock(monkeypatch, 1.27)
    words = [
        word
        for pair in zip(options[::2], options[1::2], strict=True)
        for word in pair
        if pair[0] != "--epochs"
    ]
    code, out, err = colakit("doctor", *words, "--json")
    assert code == 0, err
    said = json.loads(out)["int8"]
    assert "auto` does not use it on" in said
    assert "measured 1.27 times the speed of" in said
    assert f"less than {MIN_SPEEDUP}" in said
