"""Trials of a study: taken over from dead workers only, limited in number, sampled by their index."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colakit.config.sweep import SweepSettings
from colakit.errors import ColakitError
from colakit.sweeps import study as module
from colakit.sweeps.results import results_of, winner_of
from colakit.sweeps.space import Dimension
from colakit.sweeps.study import SweepStudy, Worker

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`")

SPACE = (Dimension("finetune.lr", (), 1e-5, 1e-1, log=True), Dimension("lora.rank", (2, 4, 8)))
Open = Callable[..., SweepStudy]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Function that opens the study of this test as a worker, by default a new one in the same folder."""

    def run(worker: Worker | None = None, trials: int = 4, **settings: Any) -> SweepStudy:
        url = f"sqlite:///{tmp_path}/sweep.db"
        own = worker or Worker(tmp_path, f"worker-{time.monotonic_ns()}")
        (tmp_path / "workers").mkdir(exist_ok=True)
        return SweepStudy(url, "test", SweepSettings(sampler="random", **settings), SPACE, trials, own)

    return run


def params(study: SweepStudy) -> dict[int, dict[str, Any]]:
    return {index: attempt.params for index, attempt in study.attempts().items()}


def test_abandoned_trials_are_repeated_with_the_same_index_and_values(opened: Open) -> None:
    first = opened()
    asked = [first.ask() for _ in range(3)]
    first.tell(asked[1][1], value=0.5)
    before, second = params(first), opened()
    again = [second.ask() for _ in range(3)]
    assert [index for index, _ in again] == [0, 2, 3]
    assert [trial.params for _, trial in again[:2]] == [before[0], before[2]]
    assert second.ask() is None
    for index, trial in again:
        second.tell(trial, value=index / 10)
    assert [each.value for each in results_of(second)] == [0.0, 0.5, 0.2, 0.3]
    assert winner_of(results_of(second)).index == 1
    assert second.num_done() == 4


def test_a_sweep_that_was_stopped_samples_the_same_values(opened: Open, tmp_path: Path) -> None:
    for _ in range(3):
        study = opened()
        study.ask()  # and this worker dies
    while (asked := study.ask()) is not None:
        study.tell(asked[1], value=0.0)
    stopped = params(study)
    (tmp_path / "sweep.db").unlink()
    study = opened()
    while (asked := study.ask()) is not None:
        study.tell(asked[1], value=0.0)
    assert params(study) == stopped


def test_trials_of_a_living_worker_are_left_to_it(opened: Open, tmp_path: Path) -> None:
    with Worker.registered(tmp_path) as living:
        first, second = opened(living), opened()
        (index, trial), others = first.ask(), [second.ask()[0] for _ in range(3)]
        assert (index, others) == (0, [1, 2, 3])
        assert second.ask() is None
        first.tell(trial, value=0.1)


def test_a_silent_worker_elsewhere_loses_its_trial_and_its_late_result(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(Worker(tmp_path / "other", "other")), opened(heartbeat_seconds=1)
    index, trial = first.ask()
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert second.ask()[0] == 1  # the first look at the heartbeat
    first.beat([trial])
    now[0] += module.MISSED_HEARTBEATS + 1
    assert second.ask()[0] == 2  # the heartbeat changed
    now[0] += module.MISSED_HEARTBEATS + 1
    repeated = second.ask()
    assert repeated[0] == index
    assert repeated[1].params == trial.params
    first.tell(trial, value=0.9)
    assert first.report(trial, 1, 0.9)  # to be stopped
    second.tell(repeated[1], value=0.2)
    assert second.attempts()[index].value == 0.2


def test_workers_that_start_the_last_trial_at_once_do_not_exceed_the_number_of_trials(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(trials=1)
    study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(SweepStudy, "attempts", lambda self: {})  # as before the other started it
        assert study.ask() is None
    assert list(study.attempts()) == [0]


def test_failed_and_pruned_trials_are_not_repeated(opened: Open) -> None:
    study = opened(trials=2, pruner="median")
    (_, failed), (_, pruned) = study.ask(), study.ask()
    study.tell(failed, error="out of memory")
    study.report(pruned, 1, 0.25)
    study.tell(pruned)
    assert opened(trials=2).ask() is None
    results = results_of(study)
    assert [(each.state, each.value, each.error) for each in results] == [
        ("failed", None, "out of memory"),
        ("pruned", 0.25, None),
    ]
    assert winner_of(results) is None


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "worker")
    with pytest.raises(ColakitError, match=r"--storage host/name: cannot be opened") as caught:
        SweepStudy("nosql://me:secret@host/name", "test", SweepSettings(), SPACE, 1, worker)
    assert "secret" not in str(caught.value)
