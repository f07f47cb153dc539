"""`export --push` against a local server that speaks the hub's upload protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.exported import write_student

NAME = "someone/judge"
BIG = (".onnx", ".safetensors")  # uploaded as LFS objects, all others within the commit


class FakeHub(ThreadingHTTPServer):
    """Keeps the files of the one model that is uploaded to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}  # SHA-256 -> content
        self.files: dict[str, bytes] = {}
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send({"id": NAME, "sha": "0" * 40, "siblings": []})

    def do_PUT(self) -> None:
        body = self._body()
        digest = hashlib.sha256(body).hexdigest()
        assert self.path == f"/objects/{digest}"
        self.server.objects[digest] = body
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuses or self.headers["Authorization"] != "Bearer hf_local":
            return self._send({"error": "forbidden"}, 403)
        match self.path.partition("?")[0].split("/")[1:]:
            case ["api", "repos", "create"]:
                self.server.created = json.loads(body)
                self._send({"url": f"{self.server.url}/{NAME}"})
            case ["api", "validate-yaml"]:
                self._send({"errors": [], "warnings": []})
            case [*_, "preupload", "main"]:
                paths = [each["path"] for each in json.loads(body)["files"]]
                modes = [{"path": p, "uploadMode": "lfs" if p.endswith(BIG) else "regular"} for p in paths]
                self._send({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            case [*_, "objects", "batch"]:
                objects = [
                    {**each, "actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._send({"transfer": "basic", "objects": objects})
            case [*_, "commit", "main"]:
                self._commit([json.loads(line) for line in body.splitlines()])
                commit = {"commitUrl": f"{self.server.url}/{NAME}/commit/{'0' * 40}", "commitOid": "0" * 40}
                self._send({**commit, "success": True})
            case _:
                self._send({"error": f"unknown {self.path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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
    result = push(hub, toy, tmp_path, HF_TOKEN="hf_local")
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
    result = push(hub, toy, tmp_path, HF_TOKEN="hf_local")
    assert result.returncode == 1
    assert f"hf upload {NAME}" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "out" / "colakit.json").is_file()


def test_without_a_token_nothing_is_written(hub: FakeHub, toy: Path, tmp_path: Path) -> None:
    result = push(hub, toy, tmp_path)
    assert result.returncode == 2
    assert "hf auth login" in result.stderr
    assert not (tmp_path / "out").exists()
