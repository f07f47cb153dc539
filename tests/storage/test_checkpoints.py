"""Checkpoints are written atomically, and damage of any kind is detected."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.errors import ColakitError
from colakit.storage import checkpoints as checkpoint
from colakit.storage.checkpoints import MANIFEST, PARTS, STATE, Checkpoints, canonical
from colakit.storage.tensors import write_tensors

Said = list[str]


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(5, generator=generator)
    return {
        "identity": {"seed": 0},
        "step": step,
        "progress": {
            **{"max_steps": 9, "loss_sum": 0.5 * step, "count": step, "stale": 0},
            **{"best": None, "best_tensors": {}, "ema": {}},
        },
        "tensors": {"weight": weights},
        "optimizer": {"state": {0: {"exp_avg": weights * 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "per_process": [[{"cpu": generator.get_state()}, None]],
        "metrics_bytes": 0,
        "max_micro_batch_size": None,
        "graphs_failed": False,
    }


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, after steps 3 and 6."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (3, 6):
        checkpoints.save(state(step), {"seconds": 1.5, "counted": 10})
    return checkpoints


def load(checkpoints: Checkpoints) -> tuple[int, Said]:
    said: Said = []
    return checkpoints.load(said.append).state["step"], said


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Change a manifest and update its own checksum."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **changes}
    (folder / MANIFEST).write_text(checkpoint._manifest_text(manifest))


def test_a_loaded_checkpoint_equals_the_saved_one(saved: Checkpoints) -> None:
    said: Said = []
    found = saved.load(said.append)
    assert not said
    assert found.notes == {"seconds": 1.5, "counted": 10}
    assert found.state.keys() == set(PARTS)
    assert torch.equal(found.state["tensors"]["weight"], state(6)["tensors"]["weight"])


def test_the_last_two_are_kept_and_nothing_else(saved: Checkpoints) -> None:
    saved.save(state(9))
    saved.save(state(100_000_000))  # nine digits sort after eight
    assert [path.name for path in saved.paths()] == ["step-100000000", "step-00000009"]
    assert {path.name for path in saved.folder.iterdir()} == {"step-100000000", "step-00000009"}


def test_the_newest_checkpoint_has_the_highest_step_not_the_latest_time(saved: Checkpoints) -> None:
    for path in saved.folder.rglob("step-00000006*"):
        os.utime(path, (0, 0))
    assert load(saved) == (6, [])


def test_equal_states_are_equal_bytes_even_after_loading(saved: Checkpoints, tmp_path: Path) -> None:
    again = Checkpoints(tmp_path / "again" / "checkpoints")
    again.save(saved.load(print).state)
    files = [folder / "step-00000006" / STATE for folder in (saved.folder, again.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    write_tensors(tmp_path / "view.pt", canonical({"a": torch.zeros(100_000)[:2]}))
    assert (tmp_path / "view.pt").stat().st_size < 10_000


def damages(folder: Path) -> dict[str, Callable[[], object]]:
    """Return functions that damage a checkpoint folder, by name."""
    files = (folder / STATE, folder / MANIFEST)
    found: dict[str, Callable[[], object]] = {}
    progress = state(6)["progress"]
    for file in files:
        size = file.stat().st_size
        found[f"{file.name} missing"] = file.unlink
        found[f"{file.name} longer"] = lambda file=file: file.write_bytes(file.read_bytes() + b"\0")
        found[f"{file.name} a folder"] = lambda file=file: (file.unlink(), file.mkdir())
        for length in (0, 1, size // 3, size // 2, size - 1):
            found[f"{file.name} cut at {length}"] = lambda file=file, n=length: os.truncate(file, n)
    found["all missing"] = lambda: [file.unlink() for file in files]
    found["state of another step"] = lambda: write_state(folder, {**state(6), "step": 7})
    for part in PARTS:
        rest = {name: value for name, value in state(6).items() if name != part}
        found[f"{part} missing"] = lambda rest=rest: write_state(folder, rest)
    found["generators missing"] = lambda: write_state(folder, {**state(6), "per_process": [[{}, None]]})
    found["best is text"] = lambda: write_state(folder, {**state(6), "progress": {**progress, "best": "x"}})
    found["progress is empty"] = lambda: write_state(folder, {**state(6), "progress": {}})
    found["something else"] = lambda: write_state(folder, [1, 2])
    found["manifest lists nothing"] = lambda: rewrite_manifest(folder, files={})
    found["manifest is older"] = lambda: rewrite_manifest(folder, format=0)
    found["manifest has no format"] = lambda: rewrite_manifest(folder, format=None)
    outside = {name: {"bytes": 0, "sha256": ""} for name in (STATE, "../../elsewhere")}
    found["manifest leads outside"] = lambda: rewrite_manifest(folder, files=outside)
    found["manifest is a list"] = lambda: (folder / MANIFEST).write_text("[]\n")
    return found


def write_state(folder: Path, content: Any) -> None:
    """Write a state and a matching manifest."""
    write_tensors(folder / STATE, content)
    facts = {"bytes": (folder / STATE).stat().st_size, "sha256": checkpoint.sha256_of(folder / STATE)}
    rewrite_manifest(folder, files={STATE: facts})


def test_any_damage_is_reported_and_loading_falls_back(saved: Checkpoints, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(saved.folder, kept)
    names = list(damages(saved.folder / "step-00000006"))
    assert len(names) > 25
    for name in names:
        shutil.rmtree(saved.folder)
        shutil.copytree(kept, saved.folder)
        damages(saved.folder / "step-00000006")[name]()
        step, said = load(saved)
        assert step == 3, name
        assert len(said) == 1, name
        assert "step-00000006" in said[0], name
        assert said[0].endswith("going back to step-00000003"), name


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_detected(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("flip") / "checkpoints")
    path = checkpoints.save(state(3))
    file = path / data.draw(st.sampled_from([STATE, MANIFEST]))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(checkpoint.DamagedError, match=file.name):
        checkpoint.read_checkpoint(path)


def test_any_flipped_bit_of_a_manifest_is_detected(saved: Checkpoints) -> None:
    path = saved.folder / "step-00000006"
    whole = (path / MANIFEST).read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[position] ^= 1 << bit
            (path / MANIFEST).write_bytes(content)
            with pytest.raises(checkpoint.DamagedError):
                checkpoint._read_manifest(path / MANIFEST)


def test_loading_fails_if_both_checkpoints_are_damaged(saved: Checkpoints) -> None:
    for path in saved.paths():
        os.truncate(path / STATE, 10)
    said: Said = []
    with pytest.raises(ColakitError, match="every checkpoint is damaged") as caught:
        saved.load(said.append)
    assert caught.value.exit_code == 2
    assert len(said) == 2


def test_a_newer_format_asks_for_an_upgrade_and_is_not_passed_over(saved: Checkpoints) -> None:
    rewrite_manifest(saved.folder / "step-00000006", format=checkpoint.FORMAT + 1)
    with pytest.raises(ColakitError, match="format 2; this colakit reads up to 1") as caught:
        saved.load(print)
    assert caught.value.exit_code == 2
    assert caught.value.hint == "Upgrade colakit."


def test_unknown_files_are_ignored(saved: Checkpoints) -> None:
    (saved.folder / "step-00000006" / "notes.txt").write_text("mine")
    (saved.folder / "step-00000099.bak").mkdir()
    (saved.folder / "step-7").mkdir()
    (saved.folder / ".staging-step-00000009").mkdir()
    assert load(saved) == (6, [])
    saved.save(state(9))
    names = {path.name for path in saved.folder.iterdir()}
    assert names == {"step-00000009", "step-00000006", "step-00000099.bak", "step-7"}


def test_a_malicious_state_never_runs(saved: Checkpoints, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (canary,)

    write_state(saved.folder / "step-00000006", {**state(6), "tensors": Payload()})
    step, said = load(saved)
    assert step == 3
    assert "it must contain only tensors and plain data" in said[0]
    assert not canary.exists()


def test_saving_removes_a_damaged_newer_checkpoint(saved: Checkpoints) -> None:
    saved.save(state(9))
    os.truncate(saved.folder / "step-00000009" / STATE, 10)
    assert load(saved)[0] == 6
    saved.prune(saved.folder / "step-00000006")  # as resuming does: the damaged one may be wanted yet
    assert [path.name for path in saved.paths()] == ["step-00000009", "step-00000006"]
    saved.save(state(7))  # as a run does that saves more often now
    assert [path.name for path in saved.paths()] == ["step-00000007", "step-00000006"]
    os.truncate(saved.folder / "step-00000007" / STATE, 10)
    saved.save(state(7))  # the same step, reached again
    assert load(saved) == (7, [])


def test_a_checkpoint_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename, remove = os.fsync, os.rename, shutil.rmtree

    def synced(descriptor: int) -> None:
        order.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append(f"rename {Path(a).name}"), rename(a, b)))
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **k: (order.append(f"remove {Path(path).name}"), remove(path, **k))
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        order.clear()
        checkpoints.save(state(step))
    staging = ".staging-step-00000003"
    named = order.index(f"rename {staging}")
    assert [event.split(".")[-2] for event in order[:named] if event.endswith(".tmp")] == [
        str(os.getpid()),
        str(os.getpid()),
    ]  # the two files
    assert order[named - 1] == f"sync {staging}"  # its names
    assert order[named + 1] == "sync checkpoints"  # its own
    assert order.index("rename step-00000001") > named


def test_a_failed_save_leaves_only_the_earlier_checkpoints(
    saved: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for number in range(1, 5):  # each file, and the names after each
        calls, failing_call = 0, number
        with pytest.raises(OSError, match="Input/output error"):
            saved.save(state(9))
        assert {path.name for path in saved.folder.iterdir()} == {"step-00000006", "step-00000003"}
        assert load(saved) == (6, [])
