"""The control takes the steps of `distill`; unequal comparisons are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from colakit import load_settings, train_scratch
from colakit.cli.app import main
from colakit.evaluation.experiments import experiment_key
from colakit.inference.classifier import load_classifier, read_origin
from colakit.storage import gpt2
from colakit.storage.gpt2 import load_tokenizer, resolve_base

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--hidden-size", "8", "--epochs", "2", "--transfer-size", "0.5", "--batch-size", "50"]
SHORT += ["--set", "transfer.sources={corrupt: 1}", "--set", "distill.upsample=2", "--quiet"]
NUM_TRAIN = 216


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, its student, and controls: by settings, by `--like`, and two that do not match."""
    folder = tmp_path_factory.mktemp("runs")
    data = ["--base", str(toy / "base"), "--data", str(toy / "corpus")]
    lines = {
        "finetune": ["finetune", *data, "--epochs", "1", "--set", "finetune.add_bos=true", "--quiet"],
        "distill": ["distill", "--teacher", str(folder / "finetune"), *SHORT],
        "control": ["train-scratch", *data, *SHORT],
        "like": ["train-scratch", "--like", str(folder / "distill"), "--quiet"],
        "epochs": ["train-scratch", *data, *SHORT, "--set", "train_scratch.budget=epochs"],
        "wider": ["train-scratch", *data, *SHORT, "--hidden-size", "9", "--set", "data.val_seed=1"],
    }
    for name, words in lines.items():
        assert main([*words, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in lines}


def test_control_takes_the_steps_of_distill_from_the_same_settings(runs: dict[str, Path]) -> None:
    steps = 2 * -(-(2 * NUM_TRAIN + NUM_TRAIN // 2) // 50)
    for name in ("distill", "control", "like"):
        assert summary(runs[name])["steps"] == summary(runs[name])["max_steps"] == steps
    assert summary(runs["epochs"])["steps"] == 2 * -(-NUM_TRAIN // 50)
    assert summary(runs["distill"])["examples"] == 2 * (2 * NUM_TRAIN + NUM_TRAIN // 2)


def test_like_takes_data_base_student_and_steps(runs: dict[str, Path]) -> None:
    """Base, data and all flags came from the distilled run; the result equals that of the same settings."""
    assert (runs["like"] / "metrics.jsonl").read_bytes() == (runs["control"] / "metrics.jsonl").read_bytes()
    for key in ("student_fingerprint", "train_fingerprint", "splits"):
        assert summary(runs["like"])[key] == summary(runs["control"])[key]
        if key != "splits":
            assert summary(runs["like"])[key] == summary(runs["distill"])[key]


def test_a_student_reads_the_tokens_of_another_base(runs: dict[str, Path], tmp_path: Path) -> None:
    """With no learning to speak of, student and controls keep equal weights: those of the other base."""
    still = ["--set", "student_training.max_steps=1", "--lr", "1e-12", "--quiet"]
    lines = {
        "distill": ["distill", "--teacher", runs["finetune"], "--student-base", "builtin", *SHORT, *still],
        "like": ["train-scratch", "--like", tmp_path / "distill", "--quiet"],
        "control": ["train-scratch", "--like", runs["distill"], "--base", "builtin", *still],
    }
    for name, words in lines.items():
        assert main([*map(str, words), "--out", str(tmp_path / name)]) == 0
    (student, like, control) = (load_classifier(tmp_path / name) for name in lines)
    vocabulary = load_tokenizer(resolve_base("builtin")).vocabulary()
    for classifier in (student, like, control):
        assert classifier.tokenizer.vocabulary() == vocabulary
        assert_close(classifier.model.state_dict(), student.model.state_dict(), rtol=0, atol=1e-9)
    for key in ("student_fingerprint", "base_fingerprint"):
        assert summary(tmp_path / "like")[key] == summary(tmp_path / "distill")[key]
        assert summary(tmp_path / "control")[key] == summary(tmp_path / "distill")[key]


def test_a_student_starts_with_the_weights_of_another(runs: dict[str, Path], tmp_path: Path) -> None:
    still = ["--set", "student_training.max_steps=1", "--lr", "1e-12", "--quiet"]
    start = ["--set", f"student.init_from={runs['epochs']}"]
    lines = {
        "distill": ["distill", "--teacher", runs["finetune"], *SHORT, *still, *start],
        "like": ["train-scratch", "--like", tmp_path / "distill", "--quiet"],
        "without": ["train-scratch", "--like", runs["distill"], *still],
    }
    for name, words in lines.items():
        assert main([*map(str, words), "--out", str(tmp_path / name)]) == 0
    weights = load_classifier(runs["epochs"]).model.state_dict()
    for name in ("distill", "like"):
        assert_close(load_classifier(tmp_path / name).model.state_dict(), weights, rtol=0, atol=1e-9)
    prints = {name: summary(tmp_path / name)["student_fingerprint"] for name in lines}
    assert prints["distill"] == prints["like"] != prints["without"]
    assert experiment_key(read_origin(tmp_path / "like")) != experiment_key(read_origin(tmp_path / "without"))


@pytest.mark.parametrize(
    ("start", "more", "message"),
    [
        ("wider", [], "has hidden_size 9 (settings: 8)"),
        ("finetune", [], "not a recurrent student"),
        ("like", ["--student-base", "builtin"], "its tokenizer is another one"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    runs: dict[str, Path], start: str, more: list[str], message: str, colakit: Run, tmp_path: Path
) -> None:
    run = ["--set", f"student.init_from={runs[start]}", *more, "--out", tmp_path / "run"]
    code, _, err = colakit("distill", "--teacher", runs["finetune"], *SHORT, *run)
    assert code == 2
    assert f"student.init_from {runs[start]}" in " ".join(err.split())
    assert message in " ".join(err.split())


def test_other_labels_get_a_new_head(runs: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = [
        f"The {word} sleeps {number}.,{name}"
        for number in range(20)
        for word, name in (("cat", "a"), ("dog", "b"))
    ]
    table.write_text("\n".join(["text,label", *rows]))
    words = [
        "train-scratch",
        "--like",
        runs["distill"],
        "--data",
        table,
        "--set",
        "train_scratch.budget=epochs",
    ]
    words += ["--set", f"student.init_from={runs['control']}", "--lr", "1e-12", "--quiet"]
    words += ["--set", "data.text_column=text", "--set", "data.label_column=label"]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 0
    start, new = (load_classifier(path).model.state_dict() for path in (runs["control"], tmp_path / "run"))
    for name in start:
        is_equal = torch.allclose(start[name].float(), new[name].float(), rtol=0, atol=1e-8)
        assert is_equal != name.startswith("score.")


def test_a_base_that_is_not_read_is_refused(runs: dict[str, Path], colakit: Run, tmp_path: Path) -> None:
    words = ["--like", runs["distill"], "--student-base", "builtin", "--base", "builtin"]
    code, _, err = colakit("train-scratch", *words, "--out", tmp_path / "run")
    assert code == 0, err
    settings = tmp_path / "run" / "settings.yaml"
    code, _, err = colakit("train-scratch", "--config", settings, "--base", "x", "--out", tmp_path / "other")
    assert code == 2
    assert "--base x: is not read, the student has the tokens of builtin" in " ".join(err.split())


def test_a_dry_run_downloads_no_student_base(
    runs: dict[str, Path], colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(gpt2, "fetch_from_hub", fail)
    for words in (["distill", "--teacher", runs["finetune"]], ["train-scratch", "--like", runs["distill"]]):
        code, out, err = colakit(*words, "--student-base", "distilgpt2", "--dry-run")
        assert code == 0, err
        assert "time unknown" in " ".join((out + err).split())


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_start_is_checked_before_the_teacher_labels(
    runs: dict[str, Path], quiet: list[str], colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colakit.distillation.teachers.Teacher.logits", None)  # not called
    words = ["--teacher", runs["finetune"], "--set", "student.init_from=./nowhere", *quiet]
    for more in ([], ["--seeds", "0,1"]):
        code, _, err = colakit("distill", *words, *more, "--out", tmp_path / "run")
        assert code == 2
        assert "student.init_from: nowhere" in err.replace("./", "")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_missing_student_base_is_named(
    runs: dict[str, Path], more: list[str], colakit: Run, tmp_path: Path
) -> None:
    for command in (["distill", "--teacher", runs["finetune"]], ["train-scratch", "--like", runs["distill"]]):
        code, _, err = colakit(*command, "--student-base", "./nowhere", *more, "--out", tmp_path / "run")
        assert code == 2
        assert "--student-base" in err
        assert "nowhere" in err


def test_like_takes_the_steps_of_an_unfinished_run_from_its_settings(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "settings.yaml").write_bytes((runs["distill"] / "settings.yaml").read_bytes())
    run = train_scratch(like=begun, out=tmp_path / "control", quiet=True)
    assert run.summary["steps"] == summary(runs["distill"])["steps"]


def test_typed_steps_and_settings_override_the_run(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    typed = ["--set", "student_training.max_steps=3", "--seed", "5"]
    code, _, err = colakit("train-scratch", "--like", runs["distill"], *typed, "--out", tmp_path / "run")
    assert code == 0, err
    assert (summary(tmp_path / "run")["steps"], summary(tmp_path / "run")["seed"]) == (3, 5)


def test_the_steps_of_a_demo_are_set(tmp_path: Path) -> None:
    assert load_settings("demo").student_training.max_steps is not None


def test_a_control_with_other_steps_is_not_resumed(runs: dict[str, Path], colakit: Run) -> None:
    code, _, err = colakit("train-scratch", "--resume", "--out", runs["control"], "--transfer-size", "2")
    assert code == 2
    assert "max_steps was 22, is" in " ".join(err.split())


def test_equal_comparisons_have_no_warning_and_unequal_ones_say_in_what(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    for command in (["evaluate", "--split", "id_dev"], ["plot", "--out", tmp_path]):
        code, out, err = colakit(*command, runs["distill"], runs["like"])
        assert code == 0, err
        assert "not trained alike" not in err
        assert "1,080" in out  # sentences seen
        code, _, err = colakit(*command, runs["distill"], runs["epochs"], "--quiet")
        assert code == 0, err
        assert "distill (lstm) and train-scratch (lstm) are not trained alike" in " ".join(err.split())
        assert "planned steps (22 against 10); `colakit" in " ".join(err.split())
    code, out, err = colakit("evaluate", runs["distill"], runs["wider"], "--split", "id_dev", "--json")
    assert code == 0, err
    (text,) = json.loads(out)["unequal"]
    assert "differ in student (shape, tokenizer, initial weights), training data;" in text


def test_a_folder_of_runs_is_replaced_by_its_runs(
    runs: dict[str, Path], colakit: Run, tmp_path: Path
) -> None:
    """Other folders in it, such as those of figures and of evaluations, are passed over."""
    for name in ("distill", "control", "finetune"):
        (tmp_path / name).symlink_to(runs[name])
    (tmp_path / "plots").mkdir()
    code, out, err = colakit("evaluate", tmp_path, "--split", "id_dev", "--json")
    assert code == 0, err
    models = [row["group"] for row in json.loads(out)["splits"]["id_dev"]["models"]]
    assert [name.partition(" ")[0] for name in models] == ["train-scratch", "distill", "finetune"]
    code, out, err = colakit("plot", tmp_path, "--out", tmp_path / "plots", "--json")
    assert code == 0, err
    code, out, err = colakit("distill", "--teacher", tmp_path)  # teachers are named one by one
    assert code == 2
