"""A local server that speaks the hub's protocol for downloads and uploads of one model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40
NAME = "someone/toy-gpt2"
TOKEN = "hf_local"  # noqa: S105 - of this server
BIG = (".onnx", ".safetensors")  # uploaded as LFS objects, all others within the commit

Fault = Callable[["Handler", str], bool]
"""Called with each download and the requested file (or `api`); returns whether it sent an answer."""


class FakeHub(ThreadingHTTPServer):
    """Serves the files of the model `NAME`, counts how often a file's body was sent, and takes uploads.

    Attributes:
        files: name -> content.
        checksums: of the downloads.
        sent: names of the bodies that were sent.
        created: the request that created the uploaded model.
        refuses: whether uploads are forbidden.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.checksums = {name: hashlib.sha256(body).hexdigest() for name, body in self.files.items()}
        self.sent: list[str] = []
        self.fault: Fault = lambda request, name: False
        self.created: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}  # SHA-256 -> content
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._download(with_body=False)

    def do_GET(self) -> None:
        self._download(with_body=True)

    def do_PUT(self) -> None:
        body = self._body()
        digest = hashlib.sha256(body).hexdigest()
        assert self.path == f"/objects/{digest}"
        self.server.objects[digest] = body
        self._send_json({})

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuses or self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._send_json({"error": "forbidden"}, 403)
        match self.path.partition("?")[0].split("/")[1:]:
            case ["api", "repos", "create"]:
                self.server.created = json.loads(body)
                self._send_json({"url": f"{self.server.url}/{NAME}"})
            case ["api", "validate-yaml"]:
                self._send_json({"errors": [], "warnings": []})
            case [*_, "preupload", "main"]:
                paths = [each["path"] for each in json.loads(body)["files"]]
                modes = [{"path": p, "uploadMode": "lfs" if p.endswith(BIG) else "regular"} for p in paths]
                self._send_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            case [*_, "objects", "batch"]:
                objects = [
                    {**each, "actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._send_json({"transfer": "basic", "objects": objects})
            case [*_, "commit", "main"]:
                self._commit([json.loads(line) for line in body.splitlines()])
                address = f"{self.server.url}/{NAME}/commit/{COMMIT}"
                self._send_json({"commitUrl": address, "commitOid": COMMIT, "success": True})
            case _:
                self._send_json({"error": f"unknown {self.path}"}, 404)

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

    def _download(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = "api" if path.startswith("/api/") else path.rpartition("/")[2]
        if self.server.fault(self, name):
            return
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "path": each, "size": len(body), "oid": hashlib.sha256(body).hexdigest()}
                for each, body in self.server.files.items()
            ]
            self._send_json(entries)
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": each} for each in self.server.files]
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/{NAME}/resolve/") and name in self.server.files:
            if with_body:
                self.server.sent.append(name)
            self._send(self.server.files[name], with_body=with_body, checksum=self.server.checksums[name])
        else:
            self.refuse(404, **{"X-Error-Code": "RepoNotFound"})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, body: bytes, *, with_body: bool, checksum: str, end: int | None = None) -> None:
        interval = self.headers["Range"]
        start = int(interval.removeprefix("bytes=").removesuffix("-")) if interval else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{checksum}"')
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            self.wfile.write(body[start:end])

    def _send_json(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]


@contextmanager
def serving(folder: Path | None = None) -> Iterator[FakeHub]:
    """Yield a hub with the files of `folder`, or an empty one."""
    hub = FakeHub({} if folder is None else {path.name: path.read_bytes() for path in folder.iterdir()})
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
