"""`colakit sweep`: trials, report, the single reading of dev, errors of the search space."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.sweeping import logs, outcome, write_stand_in

from colakit.api import sweep as module
from colakit.api import sweep_report
from colakit.cli.app import main
from colakit.errors import EXIT_FAILED
from colakit.inference.classifier import read_origin
from colakit.utils import extras

pytest.importorskip("optuna", reason="needs the extra `sweep`")

Run = Callable[..., tuple[int, str, str]]
WORDS = ("--command", "finetune")


def write_config(path: Path, toy: Path, **sweep: Any) -> Path:
    content = {
        "base": str(toy / "base"),
        "data": {"path": str(toy / "corpus")},
        "finetune": {"epochs": 1},
        "student": {"base": str(toy / "base")},
        "sweep": {"space": {"finetune.lr": [1e-3, 1e-5], "lora.rank": [2]}, "sampler": "grid", **sweep},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of real trainings: two trials of two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    config = write_config(folder / "sweep.yaml", toy, seeds=[3, 1], jobs=2)
    assert main(["sweep", "--config", str(config), *WORDS, "--out", str(folder / "out"), "--quiet"]) == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_objective_is_the_mean_of_the_seeds_on_val_and_trials_do_not_evaluate_dev(finished: Path) -> None:
    result = summary(finished / "out")
    assert (result["best_of"], result["num_complete"]) == (2, 2)
    for trial in result["trials"]:
        folder = finished / "out/trials" / f"{trial['index']:04d}"
        runs = [summary(folder / f"seed-{seed}")["splits"] for seed in (3, 1)]
        assert trial["value"] == pytest.approx(sum(splits["val"]["mcc"] for splits in runs) / 2)
        assert all(set(splits) == {"val"} for splits in runs)
        assert trial["evaluations"]["1"] == pytest.approx(runs[0]["val"]["mcc"])
    assert result["winner"]["value"] == max(trial["value"] for trial in result["trials"])
    assert f"trial {result['winner']['index']} is the best of 2 trials" in result["note"]
    assert "optimistic" in result["note"]


def test_dev_is_read_once_by_the_winner_alone(
    finished: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = summary(finished / "out")["winner"]["dev"]
    assert set(dev) == {"id_dev", "ood_dev", "dev"}
    assert [row["model"] for row in dev["dev"]["models"]] == ["seed-3", "seed-1"]
    assert {"value", "low", "high"} == set(dev["dev"]["models"][0]["mcc"])
    monkeypatch.setattr(sweep_report, "evaluate", None)  # would fail
    code, out, err = colakit("sweep", "--config", finished / "sweep.yaml", *WORDS, "--out", finished / "out")
    assert code == 0, err
    assert "2 of 2 trials ended" in err
    assert "best of 2 trials" in " ".join(out.split())
    assert summary(finished / "out")["winner"]["dev"] == dev


def test_the_settings_of_the_winner_are_a_config_that_trains_it_again(finished: Path, colakit: Run) -> None:
    winner = summary(finished / "out")["winner"]
    code, out, err = colakit("config", "show", "--config", finished / "out/winner.yaml", "--json")
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert settings["finetune"]["lr"] == winner["params"]["finetune.lr"]
    assert settings["evaluate_dev"]
    assert settings["sweep"]["space"] == {}
    assert {path.name for path in (finished / "out/plots").iterdir()} >= {"slices.png", "parallel.png"}


def test_a_model_trained_with_the_config_of_a_sweep_can_be_loaded(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "sweep.yaml", toy, space={"finetune.lr": {"low": 1e-5, "high": 1e-3}})
    code, _, err = colakit("finetune", "--config", config, "--out", tmp_path / "run", "--quiet")
    assert code == 0, err
    assert read_origin(tmp_path / "run")["settings"]["sweep"]["space"] == {}


def test_a_dry_run_shows_the_space_and_writes_nothing(toy: Path, colakit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path / "sweep.yaml", toy)
    code, out, err = colakit("sweep", "--config", config, *WORDS, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["trials"] == 2
    assert "0.001, 1e-05" in err
    assert {path.name for path in tmp_path.iterdir()} <= {"sweep.yaml", "cache"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lora.rnak": [1]}, "lora.rnak is not a setting. Did you mean lora.rank?"),
        ({"rank": [1]}, "rank is not a setting. Did you mean lora.rank?"),
        ({"lora.rank": [2, 0]}, "lora.rank: must be at least 1 (got 0)"),
        ({"lora.rank": {"low": 0, "high": 4}}, "lora.rank: must be at least 1 (got 0)"),
        ({"lora.init": ["pisa"]}, "Did you mean pissa?"),
        ({"lora.init": {"low": 0, "high": 1}}, "lora.init is not a number"),
        ({"lora.rank": {"low": 4, "high": 2}}, "low (=4) must be less than high (=2)"),
        ({"finetune.lr": {"low": 0, "high": 2, "log": True}}, "log requires low above 0"),
        ({"finetune.lr": {"low": 0, "hihg": 2}}, "hihg"),
        ({"finetune.lr": {"low": 0.1, "high": 2}}, "is a range without a step"),
        ({"data.val_fraction": [0.1]}, "data.val_fraction cannot be searched"),
        ({"student.cell": ["gru"]}, "student.cell cannot be searched by --command finetune"),
        ({"finetune.leave_out": ["1/2"]}, "finetune.leave_out cannot be searched"),
        ({}, "sweep.space is not set"),
    ],
    ids=str,
)
def test_faults_of_the_search_space_are_named(
    space: dict[str, Any], message: str, toy: Path, colakit: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "sweep.yaml", toy, space=space)
    code, _, err = colakit("sweep", "--config", config, *WORDS, "--out", tmp_path / "out")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--out is missing"),
        (("--command", "distill", "--out", "new"), "distill.teacher is not set"),
        (("--command", "train-scratch", "--out", "new", "--set", "sweep.folds=2"), "only finetune has folds"),
        (("--command", "train-scratch", "--out", "new", "--base", "builtin"), "--base builtin: is not read"),
        (("--out", "used"), "folder is not empty"),
        (("--out", "{finished}", "--set", "finetune.epochs=2"), "finetune.epochs was 1, is 2"),
        (("--out", "new", "--set", "sweep.folds=2", "--set", "sweep.seeds=1"), "cannot be combined"),
    ],
)
def test_refused_sweeps_train_nothing(
    words: tuple[str, ...], message: str, finished: Path, toy: Path, colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    config = write_config(tmp_path / "sweep.yaml", toy, seeds=[3, 1])
    if "--command" in words:
        space = {"student_training.lr": [1e-3]}
        config = write_config(tmp_path / "sweep.yaml", toy, space=space)
    words = tuple(word.format(finished=finished / "out") for word in words)
    code, _, err = colakit("sweep", "--config", config, *WORDS[: 0 if "--command" in words else 2], *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_named_with_its_extra(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    config = write_config(tmp_path / "sweep.yaml", toy)
    code, _, err = colakit("sweep", "--config", config, *WORDS, "--out", tmp_path / "out")
    assert code == 2
    assert "pip install 'colakit[sweep]'" in err


# -- with stand-ins for trainings


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Command line of a sweep whose trainings are stand-ins."""
    config = write_stand_in(tmp_path, trials=4)
    monkeypatch.setenv("EPOCH_SECONDS", "0")
    return ("sweep", "--config", config, *WORDS, "--out", tmp_path / "out")


def test_trials_share_the_cores(
    stand_in: tuple[object, ...], colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(module, "available_cpus", lambda: 6)
    code, _, err = colakit(*stand_in)
    assert code == 0, err
    assert {summary(path)["threads"] for path in (tmp_path / "out/trials").iterdir()} == {"3"}


def test_more_trials_continue_a_sweep(stand_in: tuple[object, ...], colakit: Run, tmp_path: Path) -> None:
    assert colakit(*stand_in)[0] == 0
    before = outcome(tmp_path / "out")
    code, _, err = colakit(*stand_in, "--trials", 6)
    assert code == 0, err
    assert outcome(tmp_path / "out")[:4] == before
    assert len(outcome(tmp_path / "out")) == 6
    assert all(lines == ["start", "finished"] for lines in logs(tmp_path / "out").values())


def test_a_pruned_trial_is_stopped_by_its_metrics(
    stand_in: tuple[object, ...], colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCH_SECONDS", "0.3")
    monkeypatch.setattr(module.SweepStudy, "report", lambda self, trial, number, mcc: trial.number == 2)
    code, out, err = colakit(*stand_in)
    assert code == 0, err
    assert [state for _, state, *_ in outcome(tmp_path / "out")] == [
        "complete",
        "complete",
        "pruned",
        "complete",
    ]
    assert "finished" not in logs(tmp_path / "out")["0002"]
    assert "best of 4 trials (3 complete)" in " ".join(out.split())


def test_trials_that_fail_stop_the_sweep_after_three_and_are_reported(
    stand_in: tuple[object, ...], colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "fail").write_text("the loss is not finite")
    (tmp_path / "fail-code").write_text(str(EXIT_FAILED))
    code, _, err = colakit(*stand_in, "--jobs", 1)
    assert code == EXIT_FAILED
    text = " ".join(err.split())
    assert "3 trials in a row failed; the last: trial 2: the loss is not finite; 3 of 4 trials ended" in text
    assert "Continue: the same command" in text
    (tmp_path / "fail").unlink()
    code, _, err = colakit(*stand_in)
    assert code == 0, err
    assert [state for _, state, *_ in outcome(tmp_path / "out")] == ["failed"] * 3 + ["complete"]


def test_invalid_input_stops_the_sweep_and_its_trials_remain_to_be_run(
    stand_in: tuple[object, ...], colakit: Run, tmp_path: Path
) -> None:
    (tmp_path / "fail").write_text("no such base")
    (tmp_path / "fail-code").write_text("2")
    code, _, err = colakit(*stand_in)
    assert code == 2
    assert "no such base; 0 of 4 trials ended" in " ".join(err.split())
    (tmp_path / "fail").unlink()
    assert colakit(*stand_in)[0] == 0
    assert {state for _, state, *_ in outcome(tmp_path / "out")} == {"complete"}


def test_values_that_are_invalid_together_fail_without_a_training(
    stand_in: tuple[object, ...], colakit: Run, tmp_path: Path
) -> None:
    space = "{finetune.lr: [0.001], lora.rank: [2], lora.dora: [true, false], lora.init: [pissa, kaiming]}"
    code, _, err = colakit(*stand_in, "--set", "sweep.sampler=grid", "--set", f"sweep.space={space}")
    assert code == 0, err
    failed = [each for each in summary(tmp_path / "out")["trials"] if each["state"] == "failed"]
    assert [(each["params"]["lora.dora"], each["params"]["lora.init"]) for each in failed] == [
        (True, "pissa")
    ]
    assert "dora and init: pissa cannot be combined" in failed[0]["error"]
    assert len(logs(tmp_path / "out")) == 3


def test_help_of_the_program_does_not_import_the_optional_package() -> None:
    code = "import sys; from colakit.cli.app import main; main(['sweep', '--help']); print([*sys.modules])"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "'typer'" in modules
    assert "'optuna'" not in modules
