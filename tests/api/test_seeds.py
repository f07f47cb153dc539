"""`--seeds 0,1,2`: runs, mean ± sd, errors, resuming, and use of the folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colakit import ColakitError, load_settings, train_scratch
from colakit.api import distill
from colakit.cli.app import main
from colakit.data import loading
from colakit.runtime.subprocesses import Child
from colakit.storage.run_folder import RunFolder

Run = Callable[..., tuple[int, str, str]]
SEEDS = (3, 1)
STUDENT = [
    "--hidden-size",
    "8",
    "--epochs",
    "1",
    "--transfer-size",
    "0.5",
    "--set",
    "transfer.sources={corrupt: 1}",
]


def tune(toy: Path, *more: object) -> list[str]:
    return ["finetune", "--base", str(toy / "base"), "--data", str(toy / "corpus"), *map(str, more)]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def teachers(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, trained with child processes."""
    out = tmp_path_factory.mktemp("teachers") / "seeds"
    assert main(tune(toy, "--epochs", 1, "--seeds", "3,1", "--out", out, "--quiet")) == 0
    return out


def test_each_run_equals_a_single_run_with_its_seed(teachers: Path, toy: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        assert main(tune(toy, "--epochs", 1, "--seed", seed, "--out", tmp_path / str(seed), "--quiet")) == 0
        for name in ("metrics.jsonl", "predictions.json"):
            both = (teachers / f"seed-{seed}" / name, tmp_path / str(seed) / name)
            assert both[0].read_bytes() == both[1].read_bytes()


def test_summary_and_tables_have_mean_and_deviation_over_seeds(
    teachers: Path, colakit: Run, tmp_path: Path
) -> None:
    result = summary(teachers)
    assert [run["seed"] for run in result["runs"]] == result["seeds"] == [3, 1]
    for split in ("val", "id_dev", "ood_dev"):
        for key in ("accuracy", "majority_rate", "mcc"):
            values = [summary(teachers / f"seed-{seed}")["splits"][split][key] for seed in SEEDS]
            spread = result["splits"][split][key]
            assert spread["mean"] == pytest.approx(np.mean(values))
            assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    copy = tmp_path / "copy"
    shutil.copytree(teachers, copy)
    (copy / "summary.json").unlink()  # simulates a kill during the report
    code, out, err = colakit("finetune", "--resume", "--out", copy, "--quiet")
    assert code == 0, err
    assert summary(copy) == result
    assert out.count("mean ± sd") == 3
    mcc = result["splits"]["val"]["mcc"]
    assert f"{mcc['mean']:.3f} ± {mcc['sd']:.3f}" in out
    assert "majority %" in out
    assert "sentences seen" in out


def test_evaluate_and_plot_expand_the_folder_to_one_experiment(
    teachers: Path, colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("evaluate", teachers, "--split", "id_dev", "--json")
    assert code == 0, err
    (group,) = json.loads(out)["splits"]["id_dev"]["groups"]
    assert (group["num_seeds"], group["num_folds"]) == (2, 0)
    assert group["mcc_mean"] == pytest.approx(summary(teachers)["splits"]["id_dev"]["mcc"]["mean"])
    code, out, err = colakit("plot", teachers, "--out", tmp_path, "--json")
    assert code == 0, err
    assert len(json.loads(out)["figures"]) == 4
    code, _, err = colakit("predict", "--model", teachers)
    assert code == 2
    assert f"such as {teachers}/seed-3" in " ".join(err.split())


def test_each_student_has_the_teacher_of_its_seed_and_its_control_takes_the_same_steps(
    teachers: Path, colakit: Run, children: list[Child], tmp_path: Path
) -> None:
    students, controls = tmp_path / "students", tmp_path / "controls"
    code, _, err = colakit("distill", "--teacher", teachers, *STUDENT, "--seeds", "1,3", "--out", students)
    assert code == 0, err
    for seed in SEEDS:
        (teacher,) = summary(students / f"seed-{seed}")["teachers"]
        assert Path(teacher["path"]) == teachers / f"seed-{seed}"
    code, _, err = colakit("train-scratch", "--like", students, "--out", controls)
    assert code == 0, err
    assert summary(controls)["seeds"] == [1, 3]
    pairs = [[summary(folder / f"seed-{seed}") for folder in (students, controls)] for seed in SEEDS]
    for student, control in pairs:
        assert student["steps"] == control["steps"]
        assert student["examples"] > 216  # of train and transfer set
    assert len(children) == 4
    code, out, err = colakit("evaluate", teachers, students, controls, "--split", "id_dev", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["unequal"] == []
    assert result["splits"]["id_dev"]["teaching"][0]["num_seeds"] == 2


def test_one_teacher_serves_all_seeds(
    teachers: Path, colakit: Run, children: list[Child], tmp_path: Path
) -> None:
    one = teachers / "seed-1"
    code, _, err = colakit("distill", "--teacher", one, *STUDENT, "--seeds", "0,7", "--out", tmp_path / "out")
    assert code == 0, err
    paths = [summary(tmp_path / "out" / f"seed-{seed}")["teachers"][0]["path"] for seed in (0, 7)]
    assert paths == [str(one)] * 2


def test_more_seeds_are_added_and_finished_runs_are_kept(
    teachers: Path, toy: Path, colakit: Run, children: list[Child], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teachers, copy)
    kept = (copy / "seed-1/ckpt.pt").stat().st_mtime_ns
    shutil.rmtree(copy / "seed-3")
    code, _, err = colakit("finetune", "--resume", "auto", "--seeds", "1,3,4", "--out", copy)
    assert code == 0, err
    assert [child.name for child in children] == ["seed-3", "seed-4"]
    assert (copy / "seed-1/ckpt.pt").stat().st_mtime_ns == kept
    name = "seed-3/predictions.json"
    assert (copy / name).read_bytes() == (teachers / name).read_bytes()
    assert summary(copy)["seeds"] == [1, 3, 4]


@pytest.mark.usefixtures("children")
def test_data_and_origins_are_read_once(
    teachers: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy, calls = tmp_path / "copy", Counter[str]()
    shutil.copytree(teachers, copy)
    (copy / "summary.json").unlink()  # no run is missing; only the report is

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.update([name]) or function(*a, **k))

    counted(loading, "load_dataset")
    counted(distill, "read_origin")
    assert colakit("finetune", "--resume", "--out", copy)[0] == 0
    assert calls == {"load_dataset": 1}
    calls.clear()
    assert colakit("distill", "--teacher", copy / "seed-1", *STUDENT, "--dry-run")[0] == 0
    assert calls == {"load_dataset": 1, "read_origin": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "--seeds", "0,x"], "--seeds 0,x: must be whole numbers"),
        (["finetune", "--seeds", "0,0"], "each once"),
        (["finetune", "--seeds", "-1"], "from 0 to"),
        (["finetune", "--seeds", "0,1", "--seed", "2"], "--seed with --seeds"),
        (["finetune", "--seeds", "0,1", "--folds", "2"], "--folds with --seeds"),
        (["finetune", "--seeds", "0,1", "--objective", "language-modelling"], "seeds are for classification"),
        (["finetune", "--seeds", "0,1", "--target-modules", "nothing"], "nothing"),
        (["finetune", "--seeds", "3", "--resume", "--out", "{seeds}"], "was started with --seeds 3,1"),
        (["finetune", "--seeds", "3,1", "--lr", "1", "--resume", "--out", "{seeds}"], "finetune.lr was"),
        (["distill", "--resume", "--out", "{seeds}"], "holds runs of finetune"),
        (["distill", "--teacher", "{seeds}", "--seeds", "1,2"], "--teacher {seeds}: has no seed 2"),
        (["train-scratch", "--like", "{seeds}"], "is not a run of distill"),
        (["train-scratch", "--like", "{seeds}", "--config", "demo"], "--like with --config"),
        (["generate", "--dora", "--prompt", "a"], "--dora without --rank"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_commands_train_nothing(
    words: list[str], message: str, teachers: Path, toy: Path, colakit: Run, children: list[Child]
) -> None:
    words = [word.format(seeds=teachers) for word in words]
    if words[0] == "finetune":
        words = [*words, "--base", str(toy / "base"), "--data", str(toy / "corpus")]
        words += ["--epochs", "1"]
    code, _, err = colakit(*words)
    assert code == 2
    assert message.format(seeds=teachers) in " ".join(err.split())
    assert not children
    assert not Path("runs").exists()


def test_dry_run_names_the_seeds_and_writes_nothing(toy: Path, colakit: Run) -> None:
    code, out, err = colakit(*tune(toy, "--seeds", "0,1", "--dry-run", "--json"))
    assert code == 0, err
    assert json.loads(out)["seeds"] == [0, 1]
    assert re.search(r"estimated time of all 2 runs: (about|under) ", err)
    assert "1 thread each" in err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_saves_every_seed_and_the_runs_continue_with_the_same_bytes(
    toy: Path, tmp_path: Path, colakit: Run
) -> None:
    out = tmp_path / "stopped"
    words = tune(toy, "--epochs", 12, "--set", "finetune.save_every_steps=1", "--set", "finetune.log_every=1")
    words += ["--seeds", "0,1", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "colakit", *words], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while process.poll() is None and not list(out.glob("seed-*/checkpoints/step-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    message = " ".join(err.split())
    assert "stopped: by a signal; 0 of 2 seeds are finished" in message
    assert f"Continue: colakit finetune --seeds 0,1 --resume --out {out}" in message
    for run in {path.parents[1] for path in out.glob("seed-*/checkpoints/step-*")}:
        assert RunFolder(run).checkpoints.load(pytest.fail).state["step"] > 0
    code, _, err = colakit("finetune", "--seeds", "0,1", "--resume", "--out", out, "--quiet")
    assert code == 0, err
    alone = tmp_path / "alone"
    assert main([*words[:-4], "--seed", "1", "--out", str(alone), "--quiet"]) == 0
    for name in ("metrics.jsonl", "predictions.json"):
        assert (out / "seed-1" / name).read_bytes() == (alone / name).read_bytes()


def test_python_takes_either_settings_or_a_run_to_match() -> None:
    for arguments in ({}, {"settings": load_settings("demo"), "like": "runs/distill-001"}):
        with pytest.raises(ColakitError, match="either settings or `like`"):
            train_scratch(**arguments)
