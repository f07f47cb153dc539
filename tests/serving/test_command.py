"""`colakit serve`: its arguments, its start, its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from colakit.serving.server import drop_new_connections, listen

Run = Callable[..., tuple[int, str, str]]


def test_arguments_that_cannot_be_served_are_named(colakit: Run, models_folder: Path, tmp_path: Path) -> None:
    two = models_folder / "two"
    for words, message in (
        ([], "no model to serve"),
        ([tmp_path / "none"], "file or folder not found"),
        ([two, f"two={models_folder / 'three'}"], "another model has the name two"),
        ([f"a b={two}"], "model name 'a b'"),
        (["--adapter-dir", tmp_path / "none"], "is no folder"),
        ([two, "--max-batch-tokens", "0"], "must be at least 1"),
    ):
        code, _, err = colakit("serve", *words, "--dry-run")
        assert code == 2
        assert message in err


def test_a_dry_run_loads_the_models_and_does_not_listen(colakit: Run, models_folder: Path) -> None:
    code, out, err = colakit("serve", models_folder / "two", f"s={models_folder / 'student'}", "--dry-run")
    assert code == 0, err
    assert "would serve two (adapter), s (student)" in out


def test_a_port_in_use_is_named(colakit: Run, models_folder: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        code, _, err = colakit("serve", models_folder / "student", "--port", taken.getsockname()[1])
    assert code == 2
    assert "cannot listen" in err
    assert "--port" in err


def test_a_missing_package_is_named(
    colakit: Run, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, _, err = colakit("serve", models_folder / "student")
    assert code == 2
    assert "pip install 'colakit[serve]'" in err


def test_damaged_adapters_of_the_folder_are_reported_and_the_others_served(
    colakit: Run, models_folder: Path, tmp_path: Path
) -> None:
    import shutil

    for name in ("two", "three"):
        shutil.copytree(models_folder / name, tmp_path / "dir" / name)
    (tmp_path / "dir" / "three" / "adapter_model.safetensors").write_bytes(b"broken")
    code, out, err = colakit("serve", "--adapter-dir", tmp_path / "dir", "--dry-run")
    assert code == 0, err
    assert "would serve two (adapter)" in out
    assert "three: is not served" in err


def ask_until_refused(url: str, answered: list[int], lost: list[str]) -> None:
    """Send requests until the server listens no more; count answers, and requests that got none."""
    while True:
        session = requests.Session()
        try:
            for _ in range(100):
                answer = session.post(f"{url}/v1/classify", json={"model": "two", "input": "a"}, timeout=20)
                answered.append(answer.status_code)
                if answer.headers.get("connection") == "close":
                    break
        except requests.ConnectionError as error:
            if "refused" not in str(error):
                lost.append(str(error))
            return


def test_sigterm_under_load_loses_no_request(models_folder: Path) -> None:
    words = ["serve", models_folder / "two", "--host", "127.0.0.1", "--port", "0", "--precision", "fp32"]
    words += ["--set", "serve.drain_seconds=0.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "colakit", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    url = re.findall(r"http://\S+", lines[1])[0]
    answered: list[int] = []
    lost: list[str] = []
    clients = [threading.Thread(target=ask_until_refused, args=(url, answered, lost)) for _ in range(8)]
    for client in clients:
        client.start()
    while len(answered) < 50:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(60)
    assert process.wait(60) == 0
    process.stdout.close()
    assert lost == []
    assert set(answered) == {200}


@pytest.mark.skipif(sys.platform != "linux", reason="filters sockets as Linux does")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_that_drops_new_connections_still_accepts_those_begun(host: str) -> None:
    with listen(host, 0) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as begun:
            drop_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                begun.sendall(b"request")
                assert accepted.recv(7) == b"request"


def test_listening_on_every_address_without_a_token_warns(models_folder: Path) -> None:
    words = ["serve", str(models_folder / "student"), "--host", "::", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "colakit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert "without a token" in err
