"""Killed sweeps go on, lose no finished trial and run none twice; workers share a database or a journal."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.killing import Child
from support.sweeping import kill, logs, outcome, write_stand_in

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which trainings are stand-ins."""
    folder = tmp_path_factory.mktemp("stand-in")
    write_stand_in(folder)
    return folder


def start(folder: Path, *words: str) -> Child:
    """Start the sweep in a process of its own."""
    line = ["sweep", "--config", "sweep.yaml", "--command", "finetune", "--out", str(folder), *words]
    return Child(line, folder.parent / "log.txt")


@pytest.fixture(scope="module")
def uninterrupted(stand_in: Path) -> list[object]:
    """Outcome of the sweep that nothing stops."""
    before = Path.cwd()
    os.chdir(stand_in)
    assert start(stand_in / "whole").wait()[0] == 0, (stand_in / "log.txt").read_text()
    os.chdir(before)
    return outcome(stand_in / "whole")


@pytest.fixture(autouse=True)
def inside(stand_in: Path, uninterrupted: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run sweeps where trainings are stand-ins."""
    monkeypatch.chdir(stand_in)
    monkeypatch.setenv("EPOCH_SECONDS", "0.1")


def check(folder: Path, uninterrupted: list[object]) -> None:
    assert outcome(folder) == uninterrupted
    for name, lines in logs(folder).items():
        assert lines.count("finished") == 1, (name, lines)
        assert "again" not in lines, (name, lines)


@pytest.mark.parametrize("all_below", [False, True], ids=["parent alone", "all processes"])
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_sweep_goes_on_to_the_same_trials_and_runs_none_twice(
    all_below: bool,
    times: int,
    uninterrupted: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EPOCH_SECONDS", str(times / 10))  # long enough for all kills
    folder, chance, kills = tmp_path / "killed", random.Random(times), 0
    while kills < times:
        before = {name: len(lines) for name, lines in logs(folder).items()}
        child, deadline = start(folder), time.monotonic() + 60
        while {name: len(lines) for name, lines in logs(folder).items()} == before:
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        kill(child.pid, all_below=all_below)
        kills += child.wait()[0] is None
    assert start(folder).wait()[0] == 0, (tmp_path / "log.txt").read_text()
    check(folder, uninterrupted)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server of this test, which listens on a socket in its folder."""
    pytest.importorskip("psycopg", reason="needs psycopg")
    paths = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    tools = next(
        (path for path in paths if (path / "initdb").exists() and (path / "postgres").exists()), None
    )
    if tools is None:
        pytest.skip("needs PostgreSQL's initdb and postgres")
    folder = Path(tempfile.mkdtemp(prefix="colakit-postgresql-"))
    as_user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}  # it refuses root
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    initdb = [tools / "initdb", "-D", folder / "data", "-U", "colakit", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **as_user)
    line = [tools / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, cwd=folder, **as_user) as server:
        ready, deadline = [tools / "pg_isready", "-q", "-h", folder], time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql+psycopg://colakit@/postgres?host={folder}"
        server.terminate()
    shutil.rmtree(folder)


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "sweep.journal")
    return request.getfixturevalue("postgresql")


def test_a_worker_joins_a_sweep_and_takes_over_the_trials_of_a_killed_one(
    storage: str, uninterrupted: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / machine / "sweep" for machine in ("one", "two")]  # as on two machines
    for folder in folders:
        folder.parent.mkdir()
    with monkeypatch.context() as slow:
        slow.setenv("EPOCH_SECONDS", "60")
        first = start(folders[0], "--storage", storage)
    while len(logs(folders[0])) < 2:
        time.sleep(0.01)
    second = start(folders[1], "--storage", storage)
    while not logs(folders[1]):
        time.sleep(0.01)
    kill(first.pid, all_below=True)
    assert first.wait()[0] is None
    assert second.wait()[0] == 0, (folders[1].parent / "log.txt").read_text()
    assert outcome(folders[1]) == uninterrupted
    lines = [each for folder in folders for each in logs(folder).items()]
    for index, *_ in outcome(folders[1]):
        finished = [words.count("finished") for name, words in lines if int(name) == index]
        assert sum(finished) == 1, (index, lines)
    summary = json.loads((folders[1] / "summary.json").read_text())
    assert summary["best_of"] == summary["num_complete"] == len(uninterrupted)
