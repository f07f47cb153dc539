"""Hostile HTTP requests for a server: made with hypothesis, and torn.

    python tests/stress/hostile_requests.py --cases 10000

starts a server of small models, sends each request over a connection of its own, 24 at a time, and prints the
statuses and the server's memory. Each request of hypothesis is also sent cut, and with bytes removed, doubled
and replaced. It fails at a 5xx, if the server stops answering, or if its memory grows by
more than `MAX_GROWTH_MIB`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import socket
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MAX_GROWTH_MIB = 64
TOGETHER, VARIANTS = 24, 8
PATHS = (
    *("/v1/classify", "/predict", "/v2/models/two/infer", "/v1/adapters/two", "/v1/models", "/", "/metrics"),
    *("/v2/models/%00/infer", "/../etc/passwd", "/v1/adapters/..%2f..%2fetc", "/\xff", "//", "*"),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "get", "BREW")

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["two", "three", "none", "a" * 5000, "\ud800", "\0", "\u202e"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
)
fields = st.sampled_from(
    [
        "model",
        "models",
        "input",
        "inputs",
        "truncate",
        "raw_scores",
        "path",
        "id",
        "parameters",
        "shape",
        "data",
    ]
)
documents = st.dictionaries(fields, values, max_size=6).map(lambda value: json.dumps(value).encode())
good = st.sampled_from(
    [
        b'{"model": "two", "input": ["The cat sleeps.", "b"]}',
        b'{"models": ["two", "three", "student"], "input": "The cat sleeps."}',
        b'{"model": "two", "inputs": [["a"], ["b"]]}',
        b'{"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}',
    ]
)
large = st.sampled_from(
    [
        b"[" * 100_000,
        json.dumps({"model": "two", "input": ["a"] * 200_000}).encode(),
        json.dumps({"model": "two", "input": "the cat " * 120_000}).encode(),
        b'{"model": "two", "input": "' + b"\\ud83d" * 10_000 + b'"}',
        b'{"input": ' + b"9" * 100_000 + b"}",
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a valid body with bytes cut out, doubled or replaced."""
    body = draw(good)
    start = draw(st.integers(0, len(body)))
    stop = draw(st.integers(start, len(body)))
    return (
        body[:start]
        + draw(st.sampled_from([b"", body[start:stop] * 2]) | st.binary(max_size=20))
        + body[stop:]
    )


@st.composite
def hostile_requests(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a request."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    body = draw(
        large if draw(st.integers(0, 49)) == 0 else documents | damaged() | good | st.binary(max_size=200)
    )
    length = draw(st.sampled_from([len(body)] * 8 + [0, len(body) + 5, len(body) - 1, 10**9, "x", "-1"]))
    headers = draw(
        st.lists(
            st.sampled_from(
                [
                    *(
                        "connection: close",
                        "expect: 100-continue",
                        "authorization: Bearer admin",
                        "upgrade: websocket",
                    ),
                    *(
                        "transfer-encoding: chunked",
                        "content-encoding: gzip",
                        "a" * 3000 + ": b",
                        ": b",
                        "host: y",
                    ),
                ]
            ),
            max_size=3,
        )
    )
    line = f"{draw(st.sampled_from(METHODS))} {draw(st.sampled_from(PATHS))} HTTP/1.1"
    head = "\r\n".join([line, "host: x", f"content-length: {length}", *headers, "", ""])
    request = head.encode("latin-1") + body
    return request[: draw(st.integers(0, len(request)))] if draw(st.integers(0, 5)) == 0 else request


def variants(content: bytes) -> list[bytes]:
    """Return a request and torn versions of it."""
    generator, results = random.Random(zlib.crc32(content)), [content]
    for number in range(1, VARIANTS):
        start, stop = sorted(generator.randrange(len(content) + 1) for _ in range(2))
        middle = (b"", content[start:stop] * 2, generator.randbytes(generator.randrange(20)))[number % 3]
        results.append(content[:start] + middle + (content[stop:] if number < VARIANTS - 1 else b""))
    return results


def send_raw(address: tuple[str, int], content: bytes, *, half_close: float | None = None) -> bytes:
    """Send bytes and return all that is answered until the server closes; b"" if it resets.

    Args:
        half_close: seconds after which the sending side is closed, which ends the wait for a longer body.
    """
    received = b""
    with socket.create_connection(address, timeout=60) as client:
        try:
            client.sendall(content)
            if half_close is not None:
                client.settimeout(half_close)
                with contextlib.suppress(TimeoutError):
                    received = client.recv(2**16)
                client.settimeout(60)
                client.shutdown(socket.SHUT_WR)
            while part := client.recv(2**16):
                received += part
        except TimeoutError:
            raise
        except OSError:
            pass
    return received


def memory_of(pid: int) -> int:
    """Return the resident memory of a process, in MiB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096 // 2**20


def main() -> int:
    """Send the requests; return 0 if all held."""
    from serving_load import Server
    from support.serving import write_toy_models

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_toy_models(Path(folder))
        models = {name: Path(folder) / name for name in ("two", "three", "student")}
        server = Server(models, Path(folder))
        try:
            print(json.dumps(attack(server.port, server.process.pid, options.cases)))
        finally:
            server.stop(signal.SIGTERM)
    return 0


def attack(port: int, pid: int, num_cases: int) -> dict[str, Any]:
    """Send hostile requests, assert that all held, and return the counts."""
    address, statuses = ("127.0.0.1", port), Counter[str]()
    num_drawn = TOGETHER // VARIANTS

    @settings(
        max_examples=-(-num_cases // TOGETHER),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=st.lists(hostile_requests(), min_size=num_drawn, max_size=num_drawn))
    def send(drawn: list[bytes]) -> None:
        contents = [variant for content in drawn for variant in variants(content)]
        with ThreadPoolExecutor(TOGETHER) as pool:
            for answer in pool.map(lambda content: send_raw(address, content, half_close=0.5), contents):
                statuses[answer[9:12].decode("latin-1") or "closed"] += 1
                assert b"HTTP/1.1 5" not in answer, answer[:500]

    for content in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
        send_raw(address, content, half_close=1.0)
    before = memory_of(pid)
    send()
    after = memory_of(pid)
    assert after - before <= MAX_GROWTH_MIB, (before, after)
    answer = send_raw(address, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return {"requests": statuses.total(), "statuses": statuses, "MiB before": before, "MiB after": after}


if __name__ == "__main__":
    sys.exit(main())
