"""Bases by hub name, against a local server with the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 40
NAME = "someone/toy-gpt2"


Fault = Callable[["Handler", str], bool]
"""Called with each request and the requested file (or `api`); returns whether it sent an answer."""


class FakeHub(ThreadingHTTPServer):
    """Serves the files of one folder as the model `NAME`, and counts how often a file's body was sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.sent: list[str] = []
        self.fault: Fault = lambda request, name: False
        self.checksums = {name: hashlib.sha256(body).hexdigest() for name, body in self.files.items()}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = "api" if path.startswith("/api/") else path.rpartition("/")[2]
        if self.server.fault(self, name):
            return
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [self._entry(name, body) for name, body in self.server.files.items()]
            self._send(json.dumps(entries).encode(), with_body=True)
            return
        if path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), with_body=True)
            return
        if path.startswith(f"/{NAME}/resolve/") and name in self.server.files:
            if with_body:
                self.server.sent.append(name)
            self._send(self.server.files[name], with_body=with_body, checksum=self.server.checksums[name])
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    @staticmethod
    def _entry(name: str, body: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha256(body).hexdigest()}

    def _send(self, body: bytes, *, with_body: bool, checksum: str = "", end: int | None = None) -> None:
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{checksum}"')
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            self.wfile.write(body[start:end])

    def drop(self, name: str, share: float) -> None:
        """Send a file's beginning and close the connection."""
        body, checksum = self.server.files[name], self.server.checksums[name]
        self._send(body, with_body=True, checksum=checksum, end=int(share * len(body)))

    def refuse(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    hub = FakeHub(folder)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


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


WEIGHTS = "model.safetensors"


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
