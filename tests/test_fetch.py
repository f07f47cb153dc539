"""CoLA's download, from a server on this machine: verified, whole or not at all, and bounded in time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from colakit.data import fetch
from colakit.data.corpora import COLA_FILES, load_corpus
from colakit.data.fetch import cola_folder, fetch_cola, is_fetched
from colakit.errors import ColakitError

Answer = Callable[[BaseHTTPRequestHandler], None]
CACHE = Path("cache")


class Server:
    """A web server of this machine that answers by path and counts what it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked[self.path] += 1
                outer.answers.get(self.path, status(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})

    def serve(self, answer: Answer | bytes, path: str = "/cola.zip") -> str:
        """Answer at `path` from now on; returns its URL."""
        self.answers[path] = body(answer) if isinstance(answer, bytes) else answer
        return f"http://127.0.0.1:{self.http.server_port}{path}"


def body(raw: bytes, announced: int | None = None) -> Answer:
    """Send `raw`, having announced so many bytes."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
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
    """Take the toy corpus for CoLA and a dead port for the CoLA site, whose URL is returned."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}/site.zip"
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    monkeypatch.setattr(fetch, "COLA_SHA256", sums)
    monkeypatch.setattr(fetch, "COLA_URL", dead)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return dead


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write any file beyond `size` bytes, as a full disk would."""
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
    """Every file and folder of the cache, hidden ones too."""
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*"))


WHOLE = sorted(["cola", *(f"cola/{name}" for name in COLA_FILES.values())])


def test_a_mirror_gives_the_verified_files_once(server: Server, files: dict[str, bytes]) -> None:
    url = server.serve(zipped(files))
    assert not is_fetched(CACHE)
    assert fetch_cola(CACHE, [url]) == cola_folder(CACHE)
    assert is_fetched(CACHE)
    assert fetch_cola(CACHE, [url]) == cola_folder(CACHE)
    assert server.asked == {"/cola.zip": 1}
    assert kept() == WHOLE
    assert {path.name: path.read_bytes() for path in cola_folder(CACHE).iterdir()} == files
    assert list(load_corpus(cola_folder(CACHE)).splits) == list(COLA_FILES)


def test_what_is_fetched_needs_no_network(server: Server, files: dict[str, bytes]) -> None:
    fetch_cola(CACHE, [server.serve(zipped(files))])
    assert fetch_cola(CACHE) == cola_folder(CACHE)


def test_the_site_is_asked_where_there_is_no_mirror(
    server: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "COLA_URL", server.serve(zipped(files)))
    fetch_cola(CACHE)
    assert kept() == WHOLE


def test_the_next_source_is_asked_where_one_fails(server: Server, files: dict[str, bytes]) -> None:
    mirrors = [server.serve(status(500), "/broken.zip"), server.serve(zipped(files))]
    fetch_cola(CACHE, mirrors)
    assert server.asked == {"/broken.zip": 1, "/cola.zip": 1}
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
    """Let the first member begin with a block type that deflate does not know."""
    raw = bytearray(zipped(files))
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        first = archive.infolist()[0]
    raw[first.header_offset + 30 + len(first.filename)] = 0x07
    return bytes(raw)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (changed, r"its in_domain_dev\.tsv has SHA-256 [0-9a-f]{12}…, CoLA's has [0-9a-f]{12}…"),
        (lacking, r"holds no in_domain_dev\.tsv"),
        (lambda files: b"<html>moved</html>", "is no zip"),
        (lambda files: b"", "is no zip"),
        (lambda files: zipped(files)[:-100], "is no zip"),
        (undeflatable, "is no zip"),
    ],
    ids=["changed", "lacking", "html", "nothing", "cut", "undeflatable"],
)
def test_an_archive_that_is_not_colas_is_refused_and_not_kept(
    server: Server, files: dict[str, bytes], make: Callable[[dict[str, bytes]], bytes], said: str
) -> None:
    url = server.serve(make(files))
    with pytest.raises(ColakitError, match=f"could not be downloaded \\({url}: {said}") as caught:
        fetch_cola(CACHE, [url])
    assert caught.value.exit_code == 2
    assert kept() == []
    good = server.serve(zipped(files), "/good.zip")
    assert fetch_cola(CACHE, [url, good]) == cola_folder(CACHE)  # the next source is tried
    (cola_folder(CACHE) / "in_domain_dev.tsv").write_bytes(b"damaged")
    assert fetch_cola(CACHE, [good]) == cola_folder(CACHE)
    assert (cola_folder(CACHE) / "in_domain_dev.tsv").read_bytes() == files["in_domain_dev.tsv"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_connection_that_drops_leaves_nothing(
    server: Server, files: dict[str, bytes], share: float
) -> None:
    raw = zipped(files)
    url = server.serve(body(raw[: int(share * len(raw))], announced=len(raw)))
    with pytest.raises(ColakitError, match=f"could not be downloaded \\({url}: "):
        fetch_cola(CACHE, [url])
    assert kept() == []


@pytest.mark.parametrize("answer", [status(404), status(503), status(302, Location="/cola.zip")])
def test_a_failure_names_every_source_and_the_way_by_hand(
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
    assert server.asked["/cola.zip"] <= 31


def test_a_server_that_stalls_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    url = server.serve(lambda request: bool(released.wait(10)))
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.1)
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
