"""Bases by hub name, against a local server with the hub's protocol."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.hub import NAME, Handler, serving

WEIGHTS = "model.safetensors"


def start(base: str, home: Path, endpoint: str) -> subprocess.Popen[str]:
    """Use a base in a subprocess, because huggingface_hub reads its environment on import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    command = [sys.executable, "-m", "colakit", "generate", "--base", base]
    command += ["--prompt", "The old", "--max-new-tokens", "3"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def generate(base: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    process = start(base, home, endpoint)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def blobs(home: Path) -> list[str]:
    """Return the file names in the hub's cache, partial files included."""
    return sorted(path.name for path in home.rglob("blobs/*"))


def test_a_base_is_fetched_once_and_works_offline_afterwards(toy: Path, tmp_path: Path) -> None:
    with serving(toy / "base") as hub:
        first = generate(NAME, tmp_path / "home", hub.url)
        assert first.returncode == 0, first.stderr
        assert set(hub.sent) >= {"config.json", "model.safetensors", "tokenizer.json"}
        endpoint, sent = hub.url, len(hub.sent)
        assert generate(NAME, tmp_path / "home", endpoint).returncode == 0
        assert len(hub.sent) == sent
    offline = generate(NAME, tmp_path / "home", endpoint)
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == first.stdout


def test_an_unknown_name_fails_with_a_fix(toy: Path, tmp_path: Path) -> None:
    with serving(toy / "base") as hub:
        done = generate("someone/else", tmp_path / "home", hub.url)
    assert done.returncode == 2
    assert "'someone/else' is not a local folder" in done.stderr
    assert "pass --base FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["gpt2", "not a name at all!"])
def test_an_offline_failure_names_the_base_and_a_fix(name: str, tmp_path: Path) -> None:
    done = generate(name, tmp_path / "home", "http://127.0.0.1:9")  # nothing listens on port 9
    assert done.returncode == 2
    assert repr(name) in done.stderr
    assert "pass --base FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_one_dropped_connection_is_retried(share: float, toy: Path, tmp_path: Path) -> None:
    dropped: list[str] = []

    def drops(request: Handler, name: str) -> bool:
        if name != WEIGHTS or request.command != "GET" or dropped:
            return False
        dropped.append(name)
        request.drop(name, share)
        return True

    with serving(toy / "base") as hub:
        hub.fault = drops
        done = generate(NAME, tmp_path / "home", hub.url)
        assert done.returncode == 0, done.stderr
        assert dropped == [WEIGHTS]
        assert blobs(tmp_path / "home") == sorted(set(hub.checksums.values()))


@pytest.mark.parametrize(("place", "times"), [("api", 2), (WEIGHTS, 1)])
def test_a_temporary_5xx_is_retried(place: str, times: int, toy: Path, tmp_path: Path) -> None:
    asked = Counter[str]()

    def busy(request: Handler, name: str) -> bool:
        if name != place or request.command != "GET" or asked[name] >= times:
            return False
        asked[name] += 1
        request.refuse(503)
        return True

    with serving(toy / "base") as hub:
        hub.fault = busy
        done = generate(NAME, tmp_path / "home", hub.url)
        assert done.returncode == 0, done.stderr
    assert asked[place] == times


def test_a_permanent_5xx_fails_after_three_attempts(toy: Path, tmp_path: Path) -> None:
    asked = Counter[str]()

    def broken(request: Handler, name: str) -> bool:
        if name != WEIGHTS or request.command != "GET":
            return False
        asked[name] += 1
        request.refuse(503)
        return True

    with serving(toy / "base") as hub:
        hub.fault = broken
        done = generate(NAME, tmp_path / "home", hub.url)
    assert done.returncode == 2
    assert "its hub download failed" in done.stderr
    assert "pass --base FOLDER" in done.stderr
    assert asked[WEIGHTS] == 3
    assert not [name for name in blobs(tmp_path / "home") if name.endswith(".incomplete")]


def test_a_stalled_hub_times_out(toy: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    released = threading.Event()

    def stalls(request: Handler, name: str) -> bool:
        return name == "api" and released.wait(100)

    with serving(toy / "base") as hub:
        hub.fault = stalls
        try:
            done = generate(NAME, tmp_path / "home", hub.url)
        finally:
            released.set()
    assert done.returncode == 2
    assert "its hub download failed" in done.stderr
    assert time.monotonic() - began < 90


def test_endless_redirects_fail(toy: Path, tmp_path: Path) -> None:
    asked = Counter[str]()

    def circles(request: Handler, name: str) -> bool:
        if name != WEIGHTS:
            return False
        asked[name] += 1
        request.refuse(302, Location=request.path)
        return True

    with serving(toy / "base") as hub:
        hub.fault = circles
        done = generate(NAME, tmp_path / "home", hub.url)
    assert done.returncode == 2
    assert "its hub download failed" in done.stderr
    assert asked[WEIGHTS] < 200


@pytest.mark.parametrize("length", [40, 64])
def test_a_file_with_a_wrong_checksum_is_deleted(length: int, toy: Path, tmp_path: Path) -> None:
    with serving(toy / "base") as hub:
        honest = hub.checksums["config.json"]
        hub.checksums["config.json"] = "0" * length
        done = generate(NAME, tmp_path / "home", hub.url)
        assert done.returncode == 2
        assert "config.json was downloaded with checksum" in " ".join(done.stderr.split())
        assert "0" * length not in blobs(tmp_path / "home")
        git = hashlib.sha1(b"blob %d\0" % len(hub.files["config.json"]), usedforsecurity=False)
        git.update(hub.files["config.json"])
        hub.checksums["config.json"] = honest if length == 64 else git.hexdigest()
        done = generate(NAME, tmp_path / "home", hub.url)
    assert done.returncode == 0, done.stderr


def test_two_processes_with_one_cold_cache_fetch_each_file_once(toy: Path, tmp_path: Path) -> None:
    def slow(request: Handler, name: str) -> bool:
        time.sleep(0.3)
        return False

    with serving(toy / "base") as hub:
        hub.fault = slow
        both = [start(NAME, tmp_path / "home", hub.url) for _ in range(2)]
        for one in both:
            _, err = one.communicate(timeout=120)
            assert one.returncode == 0, err
    assert Counter(hub.sent) == dict.fromkeys(hub.files, 1)
