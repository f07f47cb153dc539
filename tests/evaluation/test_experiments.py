"""The tables of experiments: which runs a row asks for, and what is read from what they leave."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import ablation  # noqa: E402
import base  # noqa: E402

import experiments  # noqa: E402
from colakit.config.resolve import resolve  # noqa: E402
from colakit.runtime.subprocesses import Child, Log  # noqa: E402


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would be run; a run leaves a summary, `evaluate` an answer about all runs."""
    found: list[tuple[str, ...]] = []

    def run_side_by_side(children: Sequence[Child], workers: Sequence[object], log: Log) -> list[str]:
        found.extend(child.words for child in children)
        return [_leave(child.words) for child in children]

    monkeypatch.setattr(experiments, "run_side_by_side", run_side_by_side)
    return found


def _leave(words: tuple[str, ...]) -> str:
    if words[0] == "evaluate":
        return json.dumps({"splits": {split: _comparison(words[4:]) for split in experiments.SPLITS}})
    run = Path(words[words.index("--out") + 1])
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"splits": {"val": {"mcc": 0.5}}}))
    return ""


def _comparison(models: tuple[str, ...]) -> dict[str, Any]:
    """What `evaluate --json` says: the runs of one folder are the seeds of one group."""
    groups = [Path(model).parent.name for model in models]
    named = list(dict.fromkeys(groups))
    return {
        "models": [
            {"model": model, "group": group, "metrics": {"mcc": named.index(group) / 10}}
            for model, group in zip(models, groups, strict=True)
        ],
        "pairs": [
            {"first": one, "second": two, "mcc": {"value": -0.1, "low": -0.2, "high": 0.05}}
            for number, one in enumerate(named)
            for two in named[number + 1 :]
        ],
    }


def tables(tmp_path: Path, text: str | None) -> list[dict[str, experiments.Row]]:
    return [base.ROWS, ablation.students(tmp_path, text)]


@pytest.mark.parametrize("text", [None, "prose.txt"])
def test_every_row_is_a_command_whose_settings_validate(text: str | None, tmp_path: Path) -> None:
    for table in tables(tmp_path, text):
        assert len(table) == len({re.sub(r"\W", "-", name) for name in table})  # a folder each
        for row in [*table.values(), *ablation.lessons(tmp_path, table).values()]:
            resolve(
                flags={}, assignments=[f"{key}={value}" for key, value in row.settings.items()], config=None
            )
            assert row.command in ("finetune", "distill", "train-scratch")
            assert (row.command == "distill") == bool(row.teachers)


def test_text_adds_a_row(tmp_path: Path) -> None:
    without, with_text = (ablation.students(tmp_path, text) for text in (None, "prose.txt"))
    assert set(with_text) - set(without) == {"text in place of samples"}


def test_no_row_takes_the_place_of_the_teachers_own(tmp_path: Path) -> None:
    assert not set(ablation.TEACHERS) & set(ablation.students(tmp_path, "prose.txt"))


def test_default_settings_of_the_tables_are_there() -> None:
    for script in ("ablation.py", "base.py"):
        text = (ROOT / "experiments" / script).read_text(encoding="utf-8")
        (config,) = re.findall(r'"(configs/[\w-]+\.yaml)"', text)
        assert (ROOT / config).is_file()


def test_a_table_tunes_the_teachers_that_its_rows_name_and_compares_with_the_control(
    calls: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["train-scratch", "no transfer set, five teachers"]
    words = ["--out", str(tmp_path), "--seeds", "0", "1", "--rows", *names]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    ablation.main()
    commands = [words[0] for words in calls]
    assert commands == ["finetune"] * 5 + ["train-scratch", "distill"] * 2 + ["evaluate"]
    folds = {word for words in calls for word in words if word.startswith("finetune.leave_out")}
    assert folds == {f"finetune.leave_out={fold}/5" for fold in range(1, 6)}
    rows = {line.split(" | ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows[f"| {names[0]}"].endswith("| - |")
    assert rows[f"| {names[1]}"].endswith("| +0.100 [-0.050, +0.200] |")  # the other way round than told
    assert "0.500 ± 0.000" in rows[f"| {names[1]}"]
    assert json.loads((tmp_path / "ablation.json").read_text())[names[1]]["id_dev"] == [0.2, 0.2]


def test_runs_that_are_no_seeds_of_one_experiment_have_no_difference() -> None:
    folders = [Path(name) for name in ("a/0", "b/0", "control/0")]
    answer = experiments.Answer({"splits": {"dev": _comparison(tuple(map(str, folders)))}}, folders)
    assert experiments.minus_control(answer, folders[:2], folders[2:]) is None
    assert experiments.minus_control(answer, folders[:1], folders[2:]) == "-0.100 [-0.200, +0.050]"
    assert experiments.minus_control(answer, folders[:1], None) is None


def test_a_run_that_fails_ends_the_table_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: nowhere/at/all\ndata: {path: builtin}\n")
    runs = experiments.Experiments(tmp_path / "c.yaml", tmp_path, range(50), (), jobs=1)
    with pytest.raises(SystemExit, match=r"colakit finetune --config .*nowhere/at/all"):
        runs.train({"LoRA": experiments.Row("finetune")})
    assert not (tmp_path / "LoRA").exists()


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(SystemExit, match="no row is called 'LORA'"):
        experiments.chosen(base.ROWS, ["LORA"])
    told = experiments.arguments("", "c.yaml", "runs").parse_args(["--set", "finetune.epochs=1"])
    assert isinstance(told, argparse.Namespace)
    assert told.assign == ["finetune.epochs=1"]
