"""Stores that follow a training: TensorBoard's event files and MLflow's file store hold metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colakit.training.tracking import Tracker
from colakit.utils import extras
from colakit.utils.console import Reporter

Command = Callable[..., tuple[int, str, str]]
STUDENT = ("student.hidden_size=8", "student_training.max_steps=6", "student_training.evaluate_every_steps=3")
LOGGED = ("student_training.log_every=1", "student_training.save_every_steps=1")


@pytest.fixture
def words(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = [word for setting in (*STUDENT, *LOGGED) for word in ("--set", setting)]
    return ["train-scratch", "--base", toy / "base", "--data", toy / "corpus", "--quiet", *settings]


def in_metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Series of some metrics in metrics.jsonl: name -> (step, value)."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "step/loss": [(r["step"], r["loss"]) for r in records if r["event"] == "step"],
        "val/mcc": [(r["step"], r["val"]["mcc"]) for r in records if r["event"] == "evaluation"],
    }


def in_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in ("step/loss", "val/mcc")}


def in_mlflow() -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("colakit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["command"] == "train-scratch"
    names = ("step/loss", "val/mcc")
    return {
        name: sorted({(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)})
        for name in names
    }


def same(actual: dict[str, list[tuple[int, float]]], expected: dict[str, list[tuple[int, float]]]) -> None:
    for name, series in expected.items():
        assert [step for step, _ in actual[name]] == [step for step, _ in series]
        assert [value for _, value in actual[name]] == pytest.approx([value for _, value in series], rel=1e-6)


def test_a_stopped_and_resumed_run_is_tracked_as_one_and_writes_the_bytes_of_an_untracked_one(
    words: list[object], colakit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = tmp_path / "tracked", tmp_path / "plain"
    tracked = [*words, "--track", "tensorboard,mlflow", "--out", run]
    with monkeypatch.context() as patch:
        log = Tracker.log

        def interrupted(self: Tracker, record: dict[str, object]) -> None:
            log(self, record)
            if record["step"] == 4:
                raise KeyboardInterrupt

        patch.setattr(Tracker, "log", interrupted)
        assert colakit(*tracked)[0] == 130
    code, _, err = colakit(*tracked, "--resume")
    assert code == 0, err
    same(in_tensorboard(run), in_metrics(run))
    same(in_mlflow(), in_metrics(run))
    assert colakit(*words, "--out", plain)[0] == 0
    for name in ("metrics.jsonl", "predictions.json", "ckpt.pt", "student.safetensors"):
        if name in ("metrics.jsonl", "predictions.json"):
            assert (run / name).read_bytes() == (plain / name).read_bytes()


def test_a_store_that_fails_is_named_and_the_training_goes_on(
    words: list[object], colakit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(MlflowClient, "log_metric", unreachable)
    code, _, err = colakit(*words, "--track", "mlflow", "--out", tmp_path / "run")
    assert code == 0, err
    assert err.count("mlflow: metrics are no longer written there (no route to host)") == 1


def test_a_store_that_cannot_be_opened_is_named(
    words: list[object], colakit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    code, _, err = colakit(*words, "--track", "mlflow", "--out", tmp_path / "run")
    assert code == 2
    assert "--track mlflow: the store cannot be opened" in err
    assert "MLFLOW_ALLOW_FILE_STORE=true" in err


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    words: list[object], colakit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    code, _, err = colakit(*words, "--track", "wandb", "--out", tmp_path / "run")
    assert code == 2
    assert "pip install 'colakit[track]'" in err
    assert not (tmp_path / "run").exists()


def test_records_have_flat_names() -> None:
    written: list[tuple[int, dict[str, float]]] = []

    class Memory:
        def log(self, step: int, values: dict[str, float]) -> None:
            written.append((step, values))

        def close(self) -> None:
            pass

    tracker = Tracker({"memory": Memory()}, Reporter(quiet=True))  # type: ignore[dict-item]
    tracker.log({"event": "step", "step": 3, "loss": 0.5})
    tracker.log({"event": "evaluation", "step": 4, "val": {"mcc": 0.1, "argmax": {"mcc": 0.2}}})
    assert written == [(3, {"step/loss": 0.5}), (4, {"val/mcc": 0.1, "val/argmax/mcc": 0.2})]
