"""`colakit finetune --folds K`: runs, out-of-fold metrics, errors, resuming, and use of the folds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, matthews_corrcoef

from colakit.api import run_set as command
from colakit.api.session import Session
from colakit.cli.app import main
from colakit.config.resolve import resolve
from colakit.config.yaml import read_yaml
from colakit.data.splits import normalised
from colakit.errors import ColakitError
from colakit.evaluation.experiments import ModelInfo, experiment_key, group_names, named_settings
from colakit.inference.classifier import load_classifier
from colakit.inference.decisions import probabilities
from colakit.runtime.device import resolve_compute
from colakit.runtime.subprocesses import Child
from colakit.storage.output import Resume
from colakit.storage.run_folder import RunFolder
from colakit.training.task_data import TaskData
from colakit.utils.console import Reporter

Run = Callable[..., tuple[int, str, str]]
K = 2


def finetune(toy: Path, *more: object) -> list[str]:
    shared = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 4, "--lr", 3e-3, "--seed", 3]
    return ["finetune", *map(str, [*shared, *more])]


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the command, with child processes."""
    folder = tmp_path_factory.mktemp("trained") / "folds"
    assert main(finetune(toy, "--folds", K, "--out", folder, "--quiet")) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "folds")
    return tmp_path / "folds"


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def load_task(toy: Path) -> TaskData:
    resolved = resolve(assignments=[f"data.path={toy / 'corpus'}"], environment={})
    return Session("finetune", resolved, Reporter(quiet=True)).load_task()


def fold_of_sentence(sentence: str, count: int) -> int:
    """Folds are counted from 1 (see `docs/distillation.md`)."""
    digest = hashlib.sha256(normalised(sentence).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count + 1


# -- training and output


def test_fold_runs_equal_runs_with_leave_out(trained: Path, toy: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        run, alone = trained / f"fold-{number}", tmp_path / f"{number}"
        fold = f"finetune.leave_out={number}/{K}"
        assert main(finetune(toy, "--set", fold, "--out", alone, "--quiet")) == 0
        for name in ("metrics.jsonl", "predictions.json"):
            assert (run / name).read_bytes() == (alone / name).read_bytes()
        assert read_yaml(run / "settings.yaml")["finetune"]["leave_out"] == f"{number}/{K}"
        assert summary(run)["leave_out"] == f"{number}/{K}"


def test_out_of_fold_metrics_use_the_model_that_did_not_train_on_the_sentence(
    trained: Path, toy: Path
) -> None:
    train = load_task(toy).train
    labels, predicted = train.require_labels(), np.full(len(train), -1)
    folds = np.array([fold_of_sentence(sentence, K) for sentence in train.sentences])
    compute = resolve_compute("auto", "auto")
    result = summary(trained)
    for number in (1, 2):
        classifier = load_classifier(trained / f"fold-{number}")
        compute.place(classifier.model.requires_grad_(False))
        rows = np.flatnonzero(folds == number)
        logits = classifier.logits(classifier.encode([train.sentences[i] for i in rows]), compute)
        odds = probabilities(logits, classifier.temperature)[:, 1]
        assert classifier.threshold is not None
        predicted[rows] = odds >= classifier.threshold
        run = result["runs"][number - 1]
        assert run["leave_out"] == f"{number}/{K}"
        assert run["threshold"] == classifier.threshold
        assert run["left_out"]["num_examples"] == len(rows)
        assert run["left_out"]["mcc"] == pytest.approx(matthews_corrcoef(labels[rows], predicted[rows]))
        val = summary(trained / f"fold-{number}")["splits"]["val"]
        assert run["val"].items() <= val.items()
    whole = result["out_of_fold"]
    assert whole["num_examples"] == len(train) == 216
    assert whole["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert whole["mcc"] != 0
    assert whole["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert whole["majority_rate"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert whole["mcc_interval"][0] < whole["mcc"] < whole["mcc_interval"][1]
    saved = RunFolder(trained).read_predictions()["out_of_fold"]
    np.testing.assert_array_equal(saved, (labels, predicted))
    for part in ("val", "left_out"):
        for key in ("mcc", "accuracy", "majority_rate"):
            values = [run[part][key] for run in result["runs"]]
            assert result[part][key]["mean"] == pytest.approx(np.mean(values))
            assert result[part][key]["sd"] == pytest.approx(np.std(values, ddof=1))


def test_printed_metrics_equal_written_ones(copy: Path, colakit: Run, children: list[Child]) -> None:
    (copy / "summary.json").unlink()  # simulates a kill during the report
    code, out, err = colakit("finetune", "--resume", "--out", copy, "--quiet")
    assert code == 0, err
    assert not children
    result = summary(copy)
    for number in (
        result["out_of_fold"]["mcc"],
        result["left_out"]["mcc"]["mean"],
        result["val"]["mcc"]["sd"],
    ):
        assert f"{number:.3f}" in out
    assert "216" in out
    assert "mean ± sd" in out
    code, out, err = colakit("finetune", "--resume", "--out", copy, "--json")
    assert code == 0
    assert json.loads(out) == {**result, "run": str(copy)}
    assert "is finished; nothing to resume" in err


def test_dry_run_counts_the_folds_and_writes_nothing(toy: Path, colakit: Run, tmp_path: Path) -> None:
    code, out, err = colakit(*finetune(toy, "--folds", 3, "--dry-run", "--json", "--out", tmp_path / "run"))
    assert code == 0, err
    plan, train = json.loads(out), load_task(toy).train
    sizes = [sum(fold_of_sentence(s, 3) == number for s in train.sentences) for number in (1, 2, 3)]
    assert plan["folds"] == dict(zip(("1/3", "2/3", "3/3"), sizes, strict=True))
    assert plan["parameters"]["trainable"] > 0
    assert list(plan["stages"]) == ["training the folds", "labelling train"]
    assert all(stage["estimated_seconds"] > 0 for stage in plan["stages"].values())
    assert "parameters train" in err
    assert not (tmp_path / "run").exists()


# -- resuming


def test_resuming_trains_the_missing_folds_with_the_original_settings(
    copy: Path, trained: Path, colakit: Run, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "fold-2")
    (copy / "summary.json").unlink()
    kept = (copy / "fold-1/ckpt.pt").stat().st_mtime_ns
    monkeypatch.setenv("COLAKIT_GENERATE__TOP_K", "3")
    code, _, err = colakit(
        "finetune", "--folds", K, "--resume", "--out", copy, "--set", "finetune.log_every=7"
    )
    assert code == 0, err
    assert [child.name for child in children] == ["fold-2"]
    assert (copy / "fold-1/ckpt.pt").stat().st_mtime_ns == kept
    for name in ("predictions.json", "fold-2/predictions.json"):
        assert (copy / name).read_bytes() == (trained / name).read_bytes()
    assert summary(copy)["out_of_fold"] == summary(trained)["out_of_fold"]
    assert read_yaml(copy / "fold-2/settings.yaml")["finetune"]["log_every"] == 7  # may change on resume


def test_resume_auto_starts_and_children_ignore_settings_of_the_environment(
    toy: Path, colakit: Run, children: list[Child], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLAKIT_FINETUNE__EPOCHS", "9")
    monkeypatch.setenv("COLAKIT_SHARED", "kept")
    assert "COLAKIT_FINETUNE__EPOCHS" not in command.without_settings(os.environ)
    assert command.without_settings(os.environ)["COLAKIT_SHARED"] == "kept"
    monkeypatch.delenv("COLAKIT_FINETUNE__EPOCHS")  # the children run in this process
    out = tmp_path / "new"
    assert colakit(*finetune(toy, "--folds", K, "--epochs", 1, "--resume", "auto", "--out", out))[0] == 0
    assert [child.name for child in children] == ["fold-1", "fold-2"]
    assert read_yaml(out / "fold-1/settings.yaml")["finetune"]["epochs"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "3", "--resume"], "--folds 3: {out} was started with --folds 2"),
        (["--seeds", "1,2", "--resume"], "--seeds 1,2: {out} was started with --folds 2"),
        (["--lr", "0.5", "--resume"], "started differently: finetune.lr was 0.003, is 0.5"),
        (["--base", "gpt2", "--resume=auto"], "started differently: base was"),
        (["--folds", "2"], "--out {out}: folder is not empty"),
    ],
)
def test_resuming_with_incompatible_settings_is_refused(
    flags: list[str], message: str, copy: Path, colakit: Run, children: list[Child]
) -> None:
    before = (copy / "settings.yaml").read_bytes()
    code, _, err = colakit("finetune", "--out", copy, *flags)
    assert code == 2
    assert message.format(out=copy) in " ".join(err.split())
    assert (copy / "settings.yaml").read_bytes() == before
    assert not children


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "5", "--set", "finetune.leave_out=1/5"], "--folds with finetune.leave_out=1/5"),
        (["--folds", "5", "--objective", "language-modelling"], "finetune.objective=language-modelling"),
        (["--folds", "1"], "--folds"),
        (["--folds", "1001"], "1000"),
        (["--folds", "1000"], "is empty ("),
        (["--folds", "2", "--target-modules", "nothing"], "nothing"),
        (["--folds", "2", "--resume"], "no run folder given"),
    ],
)
def test_refused_commands_write_nothing(
    flags: list[str], message: str, toy: Path, colakit: Run, children: list[Child]
) -> None:
    code, _, err = colakit(*finetune(toy, *flags))
    assert code == 2
    assert message in " ".join(err.split())
    assert not children
    assert not Path("runs").exists()


def test_torchrun_and_existing_runs_are_refused(
    toy: Path, trained: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ["--set", "finetune.leave_out=null", "--resume", "--out", trained / "fold-1"]
    code, _, err = colakit(*finetune(toy, "--folds", 2, *whole))
    assert code == 2
    assert "holds a single run, not folds" in err
    monkeypatch.setenv("RANK", "1")
    session = Session("finetune", resolve(environment={}), Reporter(quiet=True))
    with pytest.raises(ColakitError, match="under torchrun"):
        command.plan_run_set(session, "folds", (1, 2), resume=Resume.NEVER)


def test_run_of_another_fold_is_named(copy: Path, colakit: Run) -> None:
    shutil.rmtree(copy / "fold-2")
    shutil.copytree(copy / "fold-1", copy / "fold-2")
    (copy / "summary.json").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", copy)
    assert code == 2
    assert "fold-2: left out fold 1/2; it must leave out fold 2/2" in " ".join(err.split())


@pytest.mark.parametrize(("cores", "given", "expected"), [(8, "", (2, "4")), (8, "1", (2, "1")),
                                                          (2, "2", (1, "2")), (1, "", (1, "1"))])  # fmt: skip
def test_cores_are_divided_among_the_processes(
    cores: int, given: str, expected: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(command, "available_cpus", lambda: cores)
    session = Session("finetune", resolve(assignments=["device=cpu"], environment={}), Reporter())
    workers = command.workers(session, 2)
    assert (len(workers), workers[0]["OMP_NUM_THREADS"]) == expected


# -- failures and signals, with processes


def test_failing_fold_fails_the_command_and_the_others_stay_resumable(
    copy: Path, trained: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # keeps the first fold running until the other fails
    monkeypatch.setattr(command, "available_cpus", lambda: 2)
    (copy / "summary.json").unlink()
    for number in (1, 2):
        shutil.rmtree(copy / f"fold-{number}")
    (copy / "fold-2").mkdir()
    (copy / "fold-2" / "diary.txt").write_text("a user's file")
    code, _, err = colakit("finetune", "--resume", "--out", copy, "--quiet")
    message = " ".join(err.split())
    assert code == 2
    assert f"error: fold-2: --out {copy}/fold-2: folder is not empty; 0 of 2 folds are finished" in message
    assert f"Continue: colakit finetune --folds 2 --resume --out {copy}" in message
    assert not list(copy.rglob("run.lock"))
    (copy / "fold-2" / "diary.txt").unlink()
    code, _, err = colakit("finetune", "--resume", "--out", copy, "--quiet")
    assert code == 0, err
    assert (copy / "predictions.json").read_bytes() == (trained / "predictions.json").read_bytes()


def train_until_signal(toy: Path, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Train long folds and send a signal after the first checkpoint; return exit code and stderr."""
    slow = ["--epochs", 400, "--set", "finetune.save_every_steps=2", "--out", out]
    words = [sys.executable, "-m", "colakit", *finetune(toy, "--folds", K, *slow)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None and not list(out.glob("fold-*/checkpoints/step-*")):
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate()
    return process.returncode, err


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_saves_every_fold_and_ends_all_processes(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    code, err = train_until_signal(toy, out, signal.SIGINT)
    assert code == 130, err
    message = " ".join(err.split())
    assert "stopped: by a signal; 0 of 2 folds are finished" in message
    assert f"Continue: colakit finetune --folds 2 --resume --out {out}" in message
    assert not list(out.rglob("run.lock"))
    assert not list(out.glob("fold-*/summary.json"))
    begun = {path.parents[1] for path in out.glob("fold-*/checkpoints/step-*")}
    assert begun
    for fold in begun:
        assert RunFolder(fold).checkpoints.load(pytest.fail).state["step"] > 0


def test_folds_save_and_end_when_their_parent_is_killed(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    code, err = train_until_signal(toy, out, signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    begun = {path.parents[1] for path in out.glob("fold-*/checkpoints/step-*")}
    assert begun
    for fold in begun:
        with RunFolder(fold).lock.held(wait_seconds=60):  # no process holds the lock
            assert RunFolder(fold).checkpoints.load(pytest.fail).state["step"] > 0
    assert not list(out.glob("fold-*/summary.json"))


# -- commands that use the folder


def test_distill_accepts_a_folder_of_folds(trained: Path, toy: Path, colakit: Run, tmp_path: Path) -> None:
    shared = ["distill", "--data", toy / "corpus", "--epochs", 1, "--quiet"]
    runs = [trained / f"fold-{number}" for number in (1, 2)]
    named = [word for run in runs for word in ("--teacher", run)]
    for name, teachers in (("folder", ["--teacher", trained]), ("runs", named)):
        code, _, err = colakit(*shared, *teachers, "--out", tmp_path / name)
        assert code == 0, err
    one, other = (summary(tmp_path / name) for name in ("folder", "runs"))
    assert [teacher["path"] for teacher in one["teachers"]] == list(map(str, runs))
    assert one["out_of_fold"] == 216
    assert one["teachers"] == other["teachers"]
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("folder", "runs")]
    assert metrics[0] == metrics[1]
    assert one["experiment"] == other["experiment"]


def test_evaluate_and_plot_group_the_folds(trained: Path, colakit: Run, tmp_path: Path) -> None:
    code, out, err = colakit("evaluate", trained, "--split", "dev", "--json")
    assert code == 0, err
    dev = json.loads(out)["splits"]["dev"]
    (group,) = dev["groups"]
    assert (group["num_seeds"], group["num_folds"]) == (2, 2)
    scores = [row["metrics"]["mcc"] for row in dev["models"]]
    assert [row["fold"] for row in dev["models"]] == ["1/2", "2/2"]
    assert group["mcc_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert "mean ± sd over seeds and folds" in err
    assert "2 folds" in err
    code, out, err = colakit("plot", trained, "--out", tmp_path, "--json")
    assert code == 0, err
    figures = {str(Path(figure).relative_to(trained)) for figure in json.loads(out)["figures"][:2]}
    assert figures == {"fold-1/plots/curves.png", "fold-2/plots/curves.png"}


def test_a_folder_with_a_fold_missing_is_refused_with_the_command_that_continues(
    copy: Path, toy: Path, colakit: Run
) -> None:
    (copy / "fold-2" / "summary.json").unlink()
    pairs = copy / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}\n')
    for words in (
        ["distill", "--data", toy / "corpus", "--teacher", copy],
        ["evaluate", copy],
        ["evaluate", "--pairs", pairs, copy],
        ["plot", copy],
    ):
        code, _, err = colakit(*words)
        assert code == 2
        assert f"{copy}: fold-2 of 2 is not finished" in " ".join(err.split())
        assert f"Continue: colakit finetune --folds 2 --resume --out {copy}" in " ".join(err.split())


def test_folder_of_folds_is_refused_where_one_model_is_needed(trained: Path, colakit: Run) -> None:
    code, _, err = colakit("predict", "--model", trained)
    assert code == 2
    assert f"such as {trained}/fold-1" in " ".join(err.split())


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[2]", '{"command": "pretrain", "folds": 2}', '{"command": "distill"}'),
        *(
            f'{{"command": "finetune", {value}}}'
            for value in ('"folds": true', '"folds": 1', '"folds": "5"', '"folds": 1001')
        ),
        *(
            f'{{"command": "finetune", "seeds": {value}}}'
            for value in ("[]", "[0, 0]", "[true]", '"0"', "[-1]", "7", "{}")
        ),
    ],
)
def test_damaged_record_of_runs_is_named(text: str, colakit: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(text)
    code, _, err = colakit("evaluate", tmp_path)
    assert code == 2
    assert f"{tmp_path}/runs.json: " in " ".join(err.split())


# -- one experiment


def tuned(**finetune: object) -> dict[str, Any]:
    return {"command": "finetune", "base": "gpt2", "settings": {"finetune": {"lr": 1e-3, **finetune}}}


def test_folds_of_one_count_are_one_experiment() -> None:
    key = experiment_key(tuned(leave_out="1/5"))
    assert key == experiment_key(tuned(leave_out="4/5"))
    others = [tuned(leave_out=None), tuned(leave_out="1/4"), tuned(leave_out="1/5", lr=1e-2)]
    assert key not in map(experiment_key, others)
    student = {
        **tuned(leave_out="1/5"),
        "command": "distill",
    }  # leave_out is its teacher's; it trained on all
    assert experiment_key(student) != experiment_key({**tuned(leave_out="2/5"), "command": "distill"})


def test_experiments_of_a_command_are_named_by_the_settings_that_differ() -> None:
    def info(number: int, **settings: object) -> ModelInfo:
        origin = {"command": "finetune", "settings": {"lora": settings, "finetune": {"lr": 1e-3}}}
        key, settings = experiment_key(origin), named_settings(origin)
        return ModelInfo(f"run-{number}", "finetune (GPT-2, rank 8)", key, 0, settings=settings)

    plain, dora = info(0, rank=8, dora=False), info(1, rank=8, dora=True)
    assert group_names([plain, dora]) == ["finetune", "finetune dora"]
    small = info(2, rank=4, dora=False)
    assert group_names([plain, dora, small]) == ["finetune rank=8", "finetune rank=8 dora", "finetune rank=4"]
    assert group_names([dora]) == ["finetune (GPT-2, rank 8)"]
    assert group_names([plain, info(3, rank=8, dora=False)]) == ["finetune [run-0]", "finetune [run-3]"]


def test_repeated_fold_and_seed_is_another_group() -> None:
    models = [ModelInfo(f"{seed}-{fold}", "tuned", "key", seed, fold) for seed in (0, 1) for fold in "ab"]
    assert len(set(group_names(models))) == 1
    again = ModelInfo("again", "tuned", "key", 1, "b")
    assert len(set(group_names([*models, again]))) == 2
