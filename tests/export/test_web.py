"""The page and the script of an exported folder answer as `predict`, in Node and in Chromium.

They need the packages of `colakit/assets/web/package.json`: `make install-web`.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.exported import write_gpt, write_student

from colakit.data.corpora import load_corpus

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "build" / "web" / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
needs_packages = pytest.mark.skipif(
    shutil.which("node") is None or not PACKAGES.is_dir(),
    reason=f"needs Node and the packages in {PACKAGES} (make install-web)",
)
DRIVER = """<!doctype html><iframe src="web/index.html"></iframe><script type="module">
const frame = document.querySelector("iframe");
const wait = (test) => new Promise((done) => {
  const timer = setInterval(() => { if (test()) { clearInterval(timer); done(); } }, 20);
});
const post = (value) => fetch("/results", { method: "POST", body: JSON.stringify(value) });
const page = () => frame.contentDocument;
const status = () => page()?.querySelector("output")?.textContent ?? "Loading";
await wait(() => !status().startsWith("Loading"));
if (page().querySelector("button").disabled) await post({ error: status() });
const sentences = await (await fetch("/sentences.json")).json();
page().querySelector("textarea").value = sentences.join("\\n");
page().querySelector("button").click();
await wait(() => page().querySelectorAll("tbody tr").length === sentences.length);
const rows = [...page().querySelectorAll("tbody tr")];
const shown = rows.map((row) => [row.cells[1].textContent, Number(row.cells[2].textContent)]);
const exact = [];
for (const sentence of sentences) exact.push(...(await frame.contentWindow.classify([sentence])));
await post({ shown, exact });
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves an exported folder and the driver, and keeps what the driver posts."""

    sentences: ClassVar[list[str]] = []
    results: ClassVar[dict[str, Any]] = {}
    posted: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        made = {"/driver.html": DRIVER, "/sentences.json": json.dumps(self.sentences)}
        if self.path not in made:
            return super().do_GET()
        body = made[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("html") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.results.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.posted.set()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def exported(colakit: Callable[..., Any], toy: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """An exported student with the packages of its web/, and sentences, some of them odd."""
    run = write_student(tmp_path / "run", toy, cell="gru")
    words = ["--data", toy / "corpus", "--quantize", "none", "--out", tmp_path / "out"]
    code, _, err = colakit("export", run, *words)
    assert code == 0, err
    (tmp_path / "out" / "web" / "node_modules").symlink_to(PACKAGES)
    sentences = load_corpus(toy / "corpus").split("ood_dev").sentences
    return tmp_path / "out", [
        *sentences,
        "Zoë's naïve café — 北京 🎉!",
        "a",
        "<|endoftext|> the cat",
        "the cat " * 60,
    ]


def expected(colakit: Callable[..., Any], folder: Path, sentences: list[str]) -> list[dict[str, Any]]:
    (folder.parent / "text.txt").write_text("".join(f"{each}\n" for each in sentences), encoding="utf-8")
    code, out, err = colakit("predict", "--model", folder, folder.parent / "text.txt", "--json")
    assert code == 0, err
    return json.loads(out)["predictions"]


def check(answers: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    assert [each["label"] for each in answers] == [each["label"] for each in predictions]
    for answer, prediction in zip(answers, predictions, strict=True):
        probabilities = list(prediction["probabilities"].values())
        assert answer["probabilities"] == pytest.approx(
            probabilities, abs=1e-5
        )  # fp32, printed with 6 digits


def node(folder: Path, sentences: list[str], *words: str) -> list[dict[str, Any]]:
    result = subprocess.run(
        ["node", "--preserve-symlinks", folder / "web" / "node.mjs", *words],
        input="".join(f"{each}\n" for each in sentences),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@needs_packages
def test_node_answers_as_predict(colakit: Callable[..., Any], exported: tuple[Path, list[str]]) -> None:
    folder, sentences = exported
    check(node(folder, sentences), expected(colakit, folder, sentences))


@needs_packages
def test_node_reads_weights_in_blocks(colakit: Callable[..., Any], toy: Path, tmp_path: Path) -> None:
    run = write_gpt(tmp_path / "run", toy, family="llama")
    words = ["--data", toy / "corpus", "--format", "onnx", "--out", tmp_path / "out"]
    code, _, err = colakit("export", run, *words)
    assert code == 0, err
    (tmp_path / "out" / "web" / "node_modules").symlink_to(PACKAGES)
    file, sentences = "onnx/model_quantized.onnx", list(load_corpus(toy / "corpus").split("id_dev").sentences)
    answers = node(tmp_path / "out", sentences, file)
    (tmp_path / "text.txt").write_text("".join(f"{each}\n" for each in sentences), encoding="utf-8")
    code, out, _ = colakit("predict", "--model", tmp_path / "out" / file, tmp_path / "text.txt", "--json")
    for answer, prediction in zip(answers, json.loads(out)["predictions"], strict=True):
        # WebAssembly may round int8 activations another way
        assert answer["probabilities"] == pytest.approx(list(prediction["probabilities"].values()), abs=1e-2)


@pytest.fixture
def server(exported: tuple[Path, list[str]]) -> Iterator[str]:
    """Address of a server of the exported folder."""
    folder, Server.sentences = exported
    Server.results.clear()
    Server.posted.clear()
    handler = functools.partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@needs_packages
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_answers_as_predict(
    colakit: Callable[..., Any], exported: tuple[Path, list[str]], server: str, tmp_path: Path
) -> None:
    folder, sentences = exported
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"{server}/driver.html"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            assert Server.posted.wait(300), "the page posted nothing"
        finally:
            browser.terminate()
    assert "error" not in Server.results
    predictions = expected(colakit, folder, sentences)
    check(Server.results["exact"], predictions)
    for (label, probability), each in zip(Server.results["shown"], predictions, strict=True):
        assert label == each["label"]
        assert probability == pytest.approx(each["probabilities"][label], abs=1e-3)  # printed with 3 digits
