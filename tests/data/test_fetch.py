"""CoLA's download from a local server: verified, complete or absent, and limited in time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from colakit.data import fetch
from colakit.data.corpora import load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.fetch import cola_folder, fetch_cola, is_fetched
from colakit.errors import ColakitError
from colakit.utils.download import MAX_REDIRECTS, DownloadError, RetryPolicy, download

Answer = Callable[[BaseHTTPRequestHandler], None]
CACHE = Path("cache")
PATIENCE = RetryPolicy(attempts=3, pause_seconds=0.01, stall_seconds=0.3, total_seconds=3.0)


class Server:
    """A local web server with one response per path that counts its requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests[self.path] += 1
                outer.answers.get(self.path, status(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})

    def serve(self, answer: Answer | bytes, path: str = "/cola.zip") -> str:
        """Register a response at `path`; returns its URL."""
        self.answers[path] = body(answer) if isinstance(answer, bytes) else answer
        return f"http://127.0.0.1:{self.http.server_port}{path}"


class Resumable:
    """Serves `raw` with range requests; drops the connection once at each offset in `drops_at`."""

    def __init__(self, raw: bytes, drops_at: list[int]) -> None:
        self.drops_at = drops_at
        self.ranges: list[str | None] = []
        self.sent = 0
        self.then: Callable[[], None] = lambda: None  # called after a drop
        self.become(raw)

    def become(self, raw: bytes) -> None:
        self.raw, self.tag = raw, f'"{hashlib.sha256(raw).hexdigest()}"'

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        byte_range = request.headers["Range"]
        self.ranges.append(byte_range)
        same = request.headers["If-Range"] == self.tag
        start = int(byte_range.removeprefix("bytes=").removesuffix("-")) if byte_range and same else 0
        end = self.drops_at.pop(0) if self.drops_at else len(self.raw)
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.raw) - 1}/{len(self.raw)}")
        request.send_header("Content-Length", str(len(self.raw) - start))
        request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(self.raw[start:end])
        self.sent += end - start
        if end < len(self.raw):
            self.then()


def body(raw: bytes, announced: int | None = None, **headers: str) -> Answer:
    """Send `raw` with a Content-Length of `announced`."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(raw) if announced is None else announced))
        request.end_headers()
        request.wfile.write(raw)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.thread.start()
    yield running
    running.http.shutdown()
    running.thread.join()
    running.http.server_close()


@pytest.fixture
def files(toy: Path) -> dict[str, bytes]:
    return {name: (toy / "corpus" / name).read_bytes() for name in COLA_FILES.values()}


@pytest.fixture(autouse=True)
def toy_is_cola(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> str:
    """Replace CoLA by the toy corpus and its site by a closed port; returns the site's URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}/site.zip"
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    monkeypatch.setattr(fetch, "COLA_SHA256", sums)
    monkeypatch.setattr(fetch, "COLA_URL", dead)
    monkeypatch.setattr(fetch, "PATIENCE", PATIENCE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return dead


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit written files to `size` bytes, to simulate a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def zipped(members: dict[str, bytes], folder: str = "cola_public/raw/") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(folder + name, raw)
    return out.getvalue()


def kept(cache: Path = CACHE) -> list[str]:
    """All files and folders of the cache, including hidden ones."""
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*"))


WHOLE = sorted(["cola", *(f"cola/{name}" for name in COLA_FILES.values())])


def test_a_mirror_gives_the_verified_files_once(server: Server, files: dict[str, bytes]) -> None:
    url = server.serve(zipped(files))
    assert not is_fetched(CACHE)
    assert fetch_cola(CACHE, [url]) == cola_folder(CACHE)
    assert is_fetched(CACHE)
    assert fetch_cola(CACHE, [url]) == cola_folder(CACHE)
    assert server.requests == {"/cola.zip": 1}
    assert kept() == WHOLE
    assert {path.name: path.read_bytes() for path in cola_folder(CACHE).iterdir()} == files
    assert list(load_corpus(cola_folder(CACHE)).splits) == list(COLA_FILES)


def test_a_fetched_corpus_needs_no_network(server: Server, files: dict[str, bytes]) -> None:
    fetch_cola(CACHE, [server.serve(zipped(files))])
    assert fetch_cola(CACHE) == cola_folder(CACHE)


def test_without_mirrors_the_site_is_used(
    server: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "COLA_URL", server.serve(zipped(files)))
    fetch_cola(CACHE)
    assert kept() == WHOLE


def test_the_next_source_is_tried_after_a_failure(server: Server, files: dict[str, bytes]) -> None:
    mirrors = [server.serve(status(500), "/broken.zip"), server.serve(zipped(files))]
    fetch_cola(CACHE, mirrors)
    assert server.requests == {"/broken.zip": PATIENCE.attempts, "/cola.zip": 1}
    assert kept() == WHOLE


def test_a_repacked_archive_is_verified_by_its_raw_files(server: Server, files: dict[str, bytes]) -> None:
    tokenized = {f"tokenized/{name}": raw.replace(b".", b" .") for name, raw in files.items()}
    members = {f"raw/{name}": raw for name, raw in files.items()} | tokenized | {"README": b"toy"}
    fetch_cola(CACHE, [server.serve(zipped(members, "repacked/"))])
    assert kept() == WHOLE


def test_an_incomplete_folder_is_completed(server: Server, files: dict[str, bytes]) -> None:
    cola_folder(CACHE).mkdir(parents=True)
    (cola_folder(CACHE) / "in_domain_dev.tsv").write_bytes(b"torn")
    fetch_cola(CACHE, [server.serve(zipped(files))])
    assert kept() == WHOLE
    assert (cola_folder(CACHE) / "in_domain_dev.tsv").read_bytes() == files["in_domain_dev.tsv"]


def changed(files: dict[str, bytes]) -> bytes:
    return zipped(files | {"in_domain_dev.tsv": files["in_domain_dev.tsv"].replace(b"\t1\t", b"\t0\t", 1)})


def lacking(files: dict[str, bytes]) -> bytes:
    return zipped({name: raw for name, raw in files.items() if name != "in_domain_dev.tsv"})


def undeflatable(files: dict[str, bytes]) -> bytes:
    """Give the first member an invalid deflate block type."""
    raw = bytearray(zipped(files))
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        first = archive.infolist()[0]
    raw[first.header_offset + 30 + len(first.filename)] = 0x07
    return bytes(raw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (changed, r"its in_domain_dev\.tsv has SHA-256 [0-9a-f]{12}…, CoLA's has [0-9a-f]{12}…"),
        (lacking, r"has no in_domain_dev\.tsv"),
        (lambda files: b"<html>moved</html>", "not a zip"),
        (lambda files: b"", "not a zip"),
        (lambda files: zipped(files)[:-100], "not a zip"),
        (undeflatable, "not a zip"),
    ],
    ids=["changed", "lacking", "html", "nothing", "cut", "undeflatable"],
)
def test_another_archive_is_refused_and_not_stored(
    server: Server, files: dict[str, bytes], make: Callable[[dict[str, bytes]], bytes], message: str
) -> None:
    url = server.serve(make(files))
    with pytest.raises(ColakitError, match=f"could not be downloaded \\({url}: {message}") as caught:
        fetch_cola(CACHE, [url])
    assert caught.value.exit_code == 2
    assert kept() == []
    good = server.serve(zipped(files), "/good.zip")
    assert fetch_cola(CACHE, [url, good]) == cola_folder(CACHE)  # the next source is tried
    (cola_folder(CACHE) / "in_domain_dev.tsv").write_bytes(b"damaged")
    assert fetch_cola(CACHE, [good]) == cola_folder(CACHE)
    assert (cola_folder(CACHE) / "in_domain_dev.tsv").read_bytes() == files["in_domain_dev.tsv"]


SHARES = [0.0, 0.5, 0.99]


@pytest.mark.parametrize("share", SHARES)
def test_a_connection_that_always_drops_leaves_nothing(
    server: Server, files: dict[str, bytes], share: float
) -> None:
    raw = zipped(files)
    url = server.serve(body(raw[: int(share * len(raw))], announced=len(raw)))
    with pytest.raises(ColakitError, match=f"could not be downloaded \\({url}: .*at the last of 3 attempts"):
        fetch_cola(CACHE, [url])
    assert server.requests["/cola.zip"] == PATIENCE.attempts
    assert kept() == []


@pytest.mark.parametrize("share", SHARES)
def test_a_dropped_connection_is_resumed_at_its_offset(
    server: Server, files: dict[str, bytes], share: float
) -> None:
    raw = zipped(files)
    dropping = Resumable(raw, drops_at=[int(share * len(raw))])
    fetch_cola(CACHE, [server.serve(dropping)])
    assert kept() == WHOLE
    assert dropping.ranges == [None, f"bytes={int(share * len(raw))}-" if share else None]
    assert dropping.sent == len(raw)  # no byte is sent twice


def test_a_changed_file_is_downloaded_from_the_start(server: Server) -> None:
    dropping = Resumable(b"old" * 50_000, drops_at=[90_000])
    url = server.serve(dropping)
    dropping.then = lambda: dropping.become(b"new" * 50_000)
    assert download(url, max_bytes=10**6, policy=PATIENCE) == b"new" * 50_000


@pytest.mark.parametrize("content_range", ["bytes 5-9/10", "bytes 0-9/10", "rubbish"])
def test_another_range_than_requested_is_refused(server: Server, content_range: str) -> None:
    first = iter([body(b"0123", announced=10, ETag='"a"')])
    other = status(206, **{"Content-Range": content_range})
    url = server.serve(lambda request: next(first, other)(request))
    with pytest.raises(DownloadError, match="a different byte range"):
        download(url, max_bytes=100, policy=PATIENCE)


def test_a_server_without_ranges_and_lengths_works(server: Server) -> None:
    def chunked(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    assert download(server.serve(chunked), max_bytes=100, policy=PATIENCE) == b"abcde"
    dropping = iter([body(b"0123", announced=10), body(b"0123456789")])  # no ETag, so it cannot be resumed
    url = server.serve(lambda request: next(dropping)(request))
    assert download(url, max_bytes=100, policy=PATIENCE) == b"0123456789"


@pytest.mark.parametrize("announced", [10**9, None])
def test_a_download_over_the_size_limit_is_refused(server: Server, announced: int | None) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if announced is not None:
            request.send_header("Content-Length", str(announced))
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(bytes(2**16))

    with pytest.raises(DownloadError, match="bytes"):
        download(server.serve(endless), max_bytes=2**20, policy=PATIENCE)
    assert server.requests["/cola.zip"] == 1


def test_a_slow_server_times_out(server: Server) -> None:
    def dripping(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        with contextlib.suppress(OSError):
            while not released.wait(0.05):  # shorter than the stall time-out
                request.wfile.write(b"a")

    released = threading.Event()
    began = time.monotonic()
    try:
        with pytest.raises(DownloadError, match="too slow"):
            download(
                server.serve(dripping),
                max_bytes=10**6,
                policy=dataclasses.replace(PATIENCE, total_seconds=0.5),
            )
    finally:
        released.set()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_busy_server_is_retried(server: Server, files: dict[str, bytes], code: int) -> None:
    answers = iter([status(code), status(code), body(zipped(files))])
    fetch_cola(CACHE, [server.serve(lambda request: next(answers)(request))])
    assert kept() == WHOLE
    assert server.requests["/cola.zip"] == 3


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), OSError(errno.ENETUNREACH, "unreachable")]
)
def test_a_machine_without_a_network_is_not_retried(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def resolve(*arguments: object) -> None:
        calls.append(arguments)
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(DownloadError, match="network"):
        download("https://cola.example/cola.zip", max_bytes=1, policy=RetryPolicy())
    assert len(calls) == 1


def test_pauses_between_retries_grow(server: Server) -> None:
    times: list[float] = []

    def busy(request: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        status(503)(request)

    policy = RetryPolicy(attempts=4, pause_seconds=0.1, stall_seconds=1.0, total_seconds=30.0)
    with pytest.raises(DownloadError, match="answers 503, at the last of 4 attempts"):
        download(server.serve(busy), max_bytes=1, policy=policy)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [pause >= wanted for pause, wanted in zip(pauses, (0.1, 0.2, 0.4), strict=True)] == [True] * 3


@pytest.mark.parametrize("answer", [status(404), status(503), status(302, Location="/cola.zip")])
def test_a_failure_names_every_source_and_the_manual_download(
    server: Server, answer: Answer, toy_is_cola: str
) -> None:
    url = server.serve(answer)
    with pytest.raises(ColakitError) as caught:
        fetch_cola(CACHE, [url])
    assert f"{url}: " in caught.value.message
    assert f"{toy_is_cola}: " in caught.value.message
    assert caught.value.hint is not None
    assert "--data cola_public_1.1.zip" in caught.value.hint
    assert "data.mirrors" in caught.value.hint
    assert kept() == []
    assert server.requests["/cola.zip"] <= 1 + MAX_REDIRECTS  # a redirect loop ends and is not retried


def test_a_stalled_server_times_out(server: Server) -> None:
    released = threading.Event()
    url = server.serve(lambda request: bool(released.wait(10)))
    try:
        with pytest.raises(ColakitError, match=f"{url}: .*timed out"):
            fetch_cola(CACHE, [url])
    finally:
        released.set()
    assert kept() == []


def test_members_of_the_archive_are_never_written_elsewhere(
    server: Server, files: dict[str, bytes], tmp_path: Path
) -> None:
    evil = zipped(files | {"../../../evil.tsv": b"evil"}, "")
    cache = tmp_path / "a" / "b"
    fetch_cola(cache, [server.serve(evil)])
    assert kept(cache) == WHOLE
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        path.name for path in cache.rglob("*.tsv")
    ]


def test_a_full_disk_leaves_no_temporary_file(server: Server, files: dict[str, bytes]) -> None:
    raw = zipped(files)
    url = server.serve(raw)
    room = len(raw)  # enough for the archive, which is smaller than the largest file inside it
    assert room < max(len(file) for file in files.values())
    with largest_file(room), pytest.raises(ColakitError, match="cola: cannot be written") as caught:
        fetch_cola(CACHE, [url])
    assert caught.value.exit_code == 1
    assert kept() == []
    assert fetch_cola(CACHE, [url]) == cola_folder(CACHE)


def test_a_cache_that_is_a_file_is_named(server: Server, files: dict[str, bytes]) -> None:
    CACHE.write_text("a file stands here")
    with pytest.raises(ColakitError, match="cache"):
        fetch_cola(CACHE, [server.serve(zipped(files))])
    assert CACHE.read_text() == "a file stands here"


FETCH = """
import sys, time
from pathlib import Path
from colakit.data import fetch
fetch.COLA_SHA256 = {name: sum for name, sum in (pair.split("=") for pair in sys.argv[2:])}
print("ready", flush=True)
sys.stdin.readline()
print(fetch.fetch_cola(Path("cache"), [sys.argv[1]]))
"""


class Fetching:
    """A subprocess that fetches CoLA on a signal."""

    def __init__(self, url: str) -> None:
        sums = [f"{name}={digest}" for name, digest in fetch.COLA_SHA256.items()]
        root = str(Path(fetch.__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", FETCH, url, *sums],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        assert out == "cache/cola\n"


def test_two_processes_with_one_cold_cache_make_one_download(server: Server, files: dict[str, bytes]) -> None:
    def slowly(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        body(zipped(files))(request)

    url = server.serve(slowly)
    both = [Fetching(url), Fetching(url)]
    for one in both:
        one.go()
    for one in both:
        one.end()
    assert server.requests == {"/cola.zip": 1}
    assert kept() == WHOLE


def test_a_killed_fetch_does_not_block_the_next(server: Server, files: dict[str, bytes]) -> None:
    requested = threading.Event()
    released = threading.Event()

    def never(request: BaseHTTPRequestHandler) -> None:
        requested.set()
        released.wait(30)

    killed = Fetching(server.serve(never))
    killed.go()
    assert requested.wait(30)
    (CACHE / ".cola-torn").mkdir()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.communicate()
    released.set()
    assert (CACHE / ".cola.lock").exists()
    fetch_cola(CACHE, [server.serve(zipped(files))])
    assert kept() == WHOLE
