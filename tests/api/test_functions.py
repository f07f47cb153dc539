"""The Python API: the examples of docs/api.md run, and functions equal commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import colakit
from colakit import ColakitError, Settings, distill, evaluate, finetune, load, load_settings, train_scratch
from colakit.inference.numpy_predictor import StudentPredictor

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., tuple[int, str, str]]


def quick(toy: Path) -> Settings:
    return load_settings(
        changes={
            "base": str(toy / "base"),
            "data.path": str(toy / "corpus"),
            "finetune.epochs": 1,
            "lora.rank": 2,
            "student.hidden_size": 8,
            "student_training.epochs": 1,
            "transfer.size": 0,
        }
    )


def test_examples_of_the_documentation_run(toy: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    namespace: dict[str, object] = {"corpus": str(toy / "corpus")}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 10
        shorter = block.replace('"finetune.epochs": 1', '"finetune.epochs": 1, "data.path": corpus')
        exec(shorter, namespace)  # noqa: S102 - our own documentation
    assert {path.name for path in Path("runs").iterdir()} == {"api-teacher", "api-student", "api-control"}
    assert isinstance(namespace["predictor"], StudentPredictor)


def test_function_and_command_train_the_same_weights(toy: Path, tmp_path: Path, colakit: Command) -> None:
    run = finetune(quick(toy), out=tmp_path / "function", quiet=True)
    options = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--rank", 2]
    options += [
        "--set",
        "transfer.size=0",
        "--set",
        "student.hidden_size=8",
        "--set",
        "student_training.epochs=1",
    ]
    code, _, err = colakit("finetune", *options, "--out", tmp_path / "command", "--quiet")
    assert code == 0, err
    for name in ("metrics.jsonl", "predictions.json", "settings.yaml"):
        assert (run.path / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    command = json.loads((tmp_path / "command/summary.json").read_text())
    assert json.loads(json.dumps(run.summary["splits"])) == command["splits"]


def test_runs_are_distilled_compared_and_loaded(toy: Path, tmp_path: Path) -> None:
    settings = quick(toy)
    teacher = finetune(settings, out=tmp_path / "teacher", quiet=True)
    student = distill(settings, teacher, out=tmp_path / "student", quiet=True)
    control = train_scratch(settings, out=tmp_path / "control", quiet=True)
    assert student.summary["teachers"][0]["path"] == str(teacher.path)
    results = evaluate([teacher, str(student.path), control], out=tmp_path / "evaluation", quiet=True)
    assert len(results["splits"]["id_dev"]["models"]) == 3
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text()) == json.loads(
        json.dumps(results)
    )
    one, several = load(student)("the cat sleeps ."), load(teacher)(["the cat sleeps .", "the cat sleep ."])
    assert one.labels.shape == (1,)
    np.testing.assert_allclose(several.probs.sum(axis=1), 1)
    again = finetune(settings, out=tmp_path / "teacher", resume=True, quiet=True)
    assert again.summary == json.loads(json.dumps(teacher.summary))


def test_invalid_settings_are_all_reported() -> None:
    with pytest.raises(ColakitError, match=r"(?s)lora\.rnak.*Did you mean lora\.rank.*finetune\.lr"):
        load_settings(changes={"lora.rnak": 8, "finetune.lr": -1})


def test_public_names_are_exported_and_documented() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in colakit.__all__:
        assert getattr(colakit, name).__doc__
        assert f"`{name}" in page or f"colakit.{name}" in page
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        colakit.distil  # noqa: B018
