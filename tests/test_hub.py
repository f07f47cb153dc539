"""Bases by hub name, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 40
NAME = "someone/toy-gpt2"


class FakeHub(ThreadingHTTPServer):
    """Serves the files of one folder as the model `NAME`, and counts how often a file's body was sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.sent: list[str] = []

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
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [self._entry(name, body) for name, body in self.server.files.items()]
            self._send(json.dumps(entries).encode(), with_body=True)
            return
        if path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), with_body=True)
            return
        name = path.rpartition("/")[2]
        if path.startswith(f"/{NAME}/resolve/") and name in self.server.files:
            if with_body:
                self.server.sent.append(name)
            self._send(self.server.files[name], with_body=with_body)
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    @staticmethod
    def _entry(name: str, body: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha256(body).hexdigest()}

    def _send(self, body: bytes, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


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


def generate(base: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Use a base in a process of its own: the hub's address is read when its library is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "colakit", "generate", "--base", base]
    command += ["--prompt", "The old", "--max-new-tokens", "3"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


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


def test_an_unknown_name_says_where_to_put_the_files(toy: Path, tmp_path: Path) -> None:
    with serving(toy / "base") as hub:
        done = generate("someone/else", tmp_path / "home", hub.url)
    assert done.returncode == 2
    assert "'someone/else' is no local folder" in done.stderr
    assert "pass --base FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["gpt2", "not a name at all!"])
def test_no_network_says_what_was_wanted_and_what_to_do(name: str, tmp_path: Path) -> None:
    done = generate(name, tmp_path / "home", "http://127.0.0.1:9")  # nothing listens on port 9
    assert done.returncode == 2
    assert repr(name) in done.stderr
    assert "pass --base FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
