"""`export --push` against a local server that speaks the hub's upload protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.exported import write_student
from support.hub import NAME, TOKEN, FakeHub, serving


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving() as server:
        yield server


def push(hub: FakeHub, toy: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    run = write_student(folder / "run", toy)
    words = ["export", run, "--data", toy / "corpus", "--out", folder / "out", "--push", NAME]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "colakit", *map(str, words)],
        env={**kept, **own, **environment},
        capture_output=True,
        text=True,
    )


def test_a_pushed_model_has_the_files_of_the_folder(hub: FakeHub, toy: Path, tmp_path: Path) -> None:
    result = push(hub, toy, tmp_path, HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    assert f"pushed to {hub.url}/{NAME}/commit/" in result.stdout
    written = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert hub.files == written
    assert {"README.md", "onnx/model_quantized.onnx", "web/index.html"} <= set(written)
    assert hub.created.get("visibility") == "private" or hub.created.get("private") is True


def test_a_failed_upload_keeps_the_folder_and_names_the_repair(
    hub: FakeHub, toy: Path, tmp_path: Path
) -> None:
    hub.refuses = True
    result = push(hub, toy, tmp_path, HF_TOKEN=TOKEN)
    assert result.returncode == 1
    assert f"hf upload {NAME}" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "out" / "colakit.json").is_file()


def test_without_a_token_nothing_is_written(hub: FakeHub, toy: Path, tmp_path: Path) -> None:
    result = push(hub, toy, tmp_path)
    assert result.returncode == 2
    assert "hf auth login" in result.stderr
    assert not (tmp_path / "out").exists()
