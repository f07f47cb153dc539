"""`colakit demo`, the built-in base, and the packaged settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.config.resolve import resolve
from colakit.config.yaml import ASSETS
from colakit.storage import gpt2

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--set", "finetune.epochs=1", "--set", "student_training.max_steps=20", "--seed", "3"]
SHORT += ["--set", "student_training.evaluate_every_steps=10", "--set", "transfer.size=0.5"]


def test_demo_runs_every_command_and_prints_the_output_folders(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("demo", "--base", toy / "base", "--data", toy / "corpus", *SHORT)
    assert code == 0, err
    folder = Path("runs/demo-001")
    for run in ("finetune", "distill", "train-scratch"):
        assert json.loads((folder / run / "summary.json").read_text())["seed"] == 3
        assert f"colakit {run}" in err
    assert (folder / "evaluation" / "evaluation.md").is_file()
    assert out.index("The children") < out.index("differences, paired") < out.index("comparison.png")
    assert (folder / "plots" / "comparison.png").is_file()
    result = out[out.rindex("Result") :]
    comparison = json.loads((folder / "evaluation" / "evaluation.json").read_text())["splits"]
    for name in ("id_dev", "ood_dev"):
        models, pairs = comparison[name]["models"], comparison[name]["pairs"][3:5]
        for pair, other, run in zip(
            pairs, ("control", "n-grams"), ("train-scratch", "baseline"), strict=True
        ):
            assert pair["first"].startswith("distill")
            assert pair["second"].startswith(run)
            verdict = "includes" if pair["mcc"]["low"] <= 0 <= pair["mcc"]["high"] else "excludes"
            (line,) = (
                line for line in result.splitlines() if line.startswith(f"{name}: distilled minus {other}")
            )
            assert f"ΔMCC {pair['mcc']['value']:+.3f} " in line
            assert f"{verdict} 0" in line
        for model in models:
            assert f"{100 * model['metrics']['accuracy']:.1f}" in result
            is_below = model["metrics"]["accuracy"] < model["metrics"]["majority_rate"]
            assert (f"{name}: {Path(model['model']).name} is less accurate than" in err) == is_below
    assert "comparison.png" in result
    assert result.rstrip().endswith(f"colakit predict --model {folder}/distill")
    sizes = [json.loads((folder / run / "summary.json").read_text()) for run in ("distill", "train-scratch")]
    assert sizes[0]["transfer"]["sentences"] > 0
    assert sizes[1]["augmented"] == 0  # the control uses labels only
    teacher = json.loads((folder / "distill" / "summary.json").read_text())["teachers"][0]
    assert Path(teacher["path"]).resolve() == (folder / "finetune").resolve()


def test_dry_run_of_the_demo_plans_all_trainings_and_their_sum(
    toy: Path, colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("demo", "--base", toy / "base", "--data", toy / "corpus", *SHORT, "--dry-run")
    assert code == 0, err
    for stage in ("finetune: training", "distill: labelling", "distill: training", "train-scratch: training"):
        assert re.search(rf"stage \d of \d: {stage}.*(about|under) ", out)
    assert "estimated time: " in out
    assert "dry run: nothing was written" in err
    assert not list(tmp_path.iterdir())


def test_a_stopped_demo_continues_and_keeps_finished_runs(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    words = ["demo", "--base", toy / "base", "--data", toy / "corpus", *SHORT, "--out", tmp_path / "demo"]
    with monkeypatch.context() as patch:
        patch.setattr("colakit.api.train_scratch.train_scratch", interrupt)
        code, _, err = colakit(*words)
    assert code == 130
    message = " ".join(err.split())
    assert "stopped: at once; 2 of 4 runs are finished" in message
    assert f"Continue: colakit demo --out {tmp_path}/demo" in message
    finished = [tmp_path / "demo" / run / "ckpt.pt" for run in ("finetune", "distill")]
    before = [path.stat().st_mtime_ns for path in finished]
    code, out, err = colakit(*words)
    assert code == 0, err
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert f"all results are in {tmp_path}/demo" in " ".join(out.split())


def test_demo_refuses_a_folder_that_is_not_empty(colakit: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine", encoding="utf-8")
    code, _, err = colakit("demo", "--out", tmp_path / "there")
    assert code == 2
    assert "is not empty" in err
    assert "--resume" not in err


def test_demo_settings_resolve_by_name_from_any_folder(tmp_path: Path) -> None:
    settings = resolve(config=Path("demo"), environment={}).settings
    assert settings.base == "builtin"
    assert settings.data.path == "builtin"
    (tmp_path / "demo").mkdir()  # a folder of that name is ignored
    assert resolve(config=Path("demo"), environment={}).settings.base == "builtin"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("seed: 5\n", encoding="utf-8")  # a user's file takes precedence
    assert resolve(config=Path("demo"), environment={}).settings.seed == 5


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_settings_validate(path: Path) -> None:
    resolve(config=path, environment={})


def test_builtin_names_the_embedded_base(
    toy: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpt2, "EMBEDDED", toy / "base")
    code, _, err = colakit("generate", "--base", "builtin", "--prompt", "The", "--max-new-tokens", "3")
    assert code == 0, err
    monkeypatch.setattr(gpt2, "EMBEDDED", tmp_path / "none")
    code, _, err = colakit("generate", "--base", "builtin", "--prompt", "The")
    assert code == 2
    assert "Reinstall colakit" in err
