"""Experiment tables: the commands of their rows, and the results read from the runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import ablation  # noqa: E402
import base  # noqa: E402
import embed_student  # noqa: E402
import gradients  # noqa: E402
import out_of_fold  # noqa: E402
import table  # noqa: E402
import validation  # noqa: E402

from colakit.cli.app import main  # noqa: E402
from colakit.config.resolve import resolve  # noqa: E402
from colakit.data.corpora import Split  # noqa: E402
from colakit.distillation.initial_weights import EMBEDDED_STUDENT  # noqa: E402
from colakit.runtime.subprocesses import Child, Log  # noqa: E402
from colakit.storage.run_folder import RunFolder  # noqa: E402


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Arguments of the recorded commands; a run writes a summary, `evaluate` prints made-up results."""
    recorded: list[tuple[str, ...]] = []

    def run_side_by_side(children: Sequence[Child], workers: Sequence[object], log: Log) -> list[str]:
        recorded.extend(child.words for child in children)
        return [_fake_run(child.words) for child in children]

    monkeypatch.setattr(table, "run_side_by_side", run_side_by_side)
    return recorded


def _fake_run(words: tuple[str, ...]) -> str:
    if words[0] == "evaluate":
        return json.dumps({"splits": {split: _comparison(words[4:]) for split in table.SPLITS}})
    run = Path(words[words.index("--out") + 1])
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"splits": {"val": {"mcc": 0.5}}}))
    return ""


def _comparison(models: tuple[str, ...]) -> dict[str, Any]:
    """Return results in the format of `evaluate --json`; the runs of one folder are one group."""
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


def tables_of_rows(tmp_path: Path, text: str | None) -> list[dict[str, table.Row]]:
    return [base.ROWS, ablation.student_rows(tmp_path, text)]


@pytest.mark.parametrize("text", [None, "prose.txt"])
def test_every_row_is_a_command_whose_settings_validate(text: str | None, tmp_path: Path) -> None:
    for rows in tables_of_rows(tmp_path, text):
        assert len(rows) == len({re.sub(r"\W", "-", name) for name in rows})  # unique folders
        for row in [*rows.values(), *ablation.teacher_rows(tmp_path, rows).values()]:
            resolve(
                flags={}, assignments=[f"{key}={value}" for key, value in row.settings.items()], config=None
            )
            assert row.command in ("finetune", "distill", "train-scratch")
            assert (row.command == "distill") == bool(row.teachers)


def test_text_adds_a_row(tmp_path: Path) -> None:
    without, with_text = (ablation.student_rows(tmp_path, text) for text in (None, "prose.txt"))
    assert set(with_text) - set(without) == {"text in place of samples"}


def test_no_student_row_has_the_name_of_a_teacher_row(tmp_path: Path) -> None:
    assert not set(ablation.TEACHERS) & set(ablation.student_rows(tmp_path, "prose.txt"))


def test_default_config_file_exists() -> None:
    assert (ROOT / table.make_parser(__doc__, "runs").parse_args([]).config).is_file()


def test_table_trains_the_teachers_of_its_rows_and_compares_with_the_control(
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
    assert rows[f"| {names[1]}"].endswith("| +0.100 [-0.050, +0.200] |")  # sign flipped
    assert "0.500 ± 0.000" in rows[f"| {names[1]}"]
    assert json.loads((tmp_path / "ablation.json").read_text())[names[1]]["id_dev"] == [0.2, 0.2]


def test_runs_of_different_experiments_have_no_difference_to_the_control() -> None:
    folders = [Path(name) for name in ("a/0", "b/0", "control/0")]
    dev = _comparison(tuple(map(str, folders)))
    assert table.mcc_minus_control(dev, folders, folders[:2], folders[2:]) is None
    assert table.mcc_minus_control(dev, folders, folders[:1], folders[2:]) == "-0.100 [-0.200, +0.050]"
    assert table.mcc_minus_control(dev, folders, folders[:1], None) is None


def test_failing_run_ends_the_table_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: nowhere/at/all\ndata: {path: builtin}\n")
    runs = table.Table(tmp_path / "c.yaml", tmp_path, range(50), (), jobs=1)
    with pytest.raises(SystemExit, match=r"colakit finetune --config .*nowhere/at/all"):
        runs.train({"LoRA": table.Row("finetune")})
    assert not (tmp_path / "LoRA").exists()


def test_unknown_row_is_an_error() -> None:
    with pytest.raises(SystemExit, match="unknown row 'LORA'"):
        table.select_rows(base.ROWS, ["LORA"])
    arguments = table.make_parser(__doc__, "runs").parse_args(["--set", "finetune.epochs=1"])
    assert arguments.assign == ["finetune.epochs=1"]


def test_trainings_are_compared_out_of_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    train = Split("train", tuple(f"Sentence {number}." for number in range(300)), labels)
    mccs = []
    for name, wrong in (("good", 0.1), ("poor", 0.4)):
        predicted = np.where(rng.random(300) < wrong, 1 - labels, labels)
        (tmp_path / name).mkdir()
        outputs = {"out_of_fold": (train, predicted, np.full((300, 2), 0.5))}
        RunFolder(tmp_path / name).write_predictions(("no", "yes"), outputs)
        mccs.append(matthews_corrcoef(labels, predicted))
    monkeypatch.setattr(sys, "argv", ["out_of_fold.py", str(tmp_path / "good"), str(tmp_path / "poor")])
    out_of_fold.main()
    lines = capsys.readouterr().out.splitlines()
    for line, mcc in zip(lines[2:4], mccs, strict=True):
        assert f"| {mcc:.3f} [" in line
    assert lines[-1].startswith("| poor - good | ")
    assert f" | {mccs[1] - mccs[0]:.3f} [" in lines[-1]


def test_runs_are_compared_with_labels_and_a_teacher_on_val(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    val = Split("val", tuple(f"Sentence {number}." for number in range(200)), labels)
    scores = {}
    for name, noise in (("teacher", 0.2), ("student", 0.6)):
        scores[name] = np.clip(np.where(labels, 0.7, 0.3) + noise * rng.standard_normal(200), 0, 1).round(6)
        rows = np.stack([1 - scores[name], scores[name]], axis=1)
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).write_predictions(("no", "yes"), {"val": (val, np.ones(200, int), rows)})
    paths = [str(tmp_path / name) for name in ("student", "teacher")]
    monkeypatch.setattr(sys, "argv", ["validation.py", paths[0], "--teacher", paths[1]])
    validation.main()
    area = roc_auc_score(labels, scores["student"])
    agreement = matthews_corrcoef(*(scores[name] > 0.5 for name in ("teacher", "student")))
    assert f"| student | {area:.3f} | {agreement:.3f} |" in capsys.readouterr().out.splitlines()
    other = Split("val", val.sentences, 1 - labels)
    outputs = {"val": (other, np.ones(200, int), rows)}
    RunFolder(tmp_path / "teacher").write_predictions(("no", "yes"), outputs)
    with pytest.raises(SystemExit):
        validation.main()
    assert "the runs have other validation splits" in capsys.readouterr().err


def test_gradients_of_every_layer_are_compared_with_fp32(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--base", toy / "base", "--data", toy / "corpus", "--epochs", "1", "--quiet"]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["gradients.py", str(tmp_path / "run"), "--data", str(toy / "corpus")])
    gradients.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 5  # four linear layers of a block, and all
    for row in rows:
        bf16, int8 = (float(row[column]) for column in (4, 7))  # relative errors
        assert 0 < bf16 < 0.1
        assert 0 < int8 < 0.1


def test_the_embedded_student_is_written_again_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["embed_student.py", str(EMBEDDED_STUDENT), str(tmp_path)])
    embed_student.main()
    assert (tmp_path / "student.safetensors").read_bytes() == (
        EMBEDDED_STUDENT / "student.safetensors"
    ).read_bytes()
