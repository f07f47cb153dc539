"""Slow, broken and hostile clients get a 4xx or a time-out, and the server answers the next request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from hostile_requests import hostile_requests, send_raw
from hypothesis import HealthCheck, given, settings
from support.serving import make_service, running

GOOD = json.dumps({"model": "two", "input": "a"}).encode()


@pytest.fixture(scope="module")
def hasty(models_folder: Path) -> Iterator[str]:
    """URL of a server with short time-outs and few connections."""
    with running(make_service(models_folder, receive_seconds=0.3, max_connections=20)) as url:
        yield url


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)


def answers(url: str) -> bool:
    return requests.post(f"{url}/v1/classify", data=GOOD, timeout=20).ok


def head(length: int, *more: str) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "host: x", f"content-length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


REQUESTS = {
    "nothing": (b"", b"408"),
    "half a head": (b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n", b"408"),
    "half a body": (head(100) + b"{", b"408"),
    "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
    "a head of 64 KiB": (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 2**16 + b"\r\n\r\n", b"400"),
    "thousands of headers": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"400"),
    "a body of a terabyte": (head(10**12), b"413"),
    "two lengths": (head(3, "content-length: 4") + b"abc", b"400"),
    "negative length": (head(-1), b"400"),
    "a chunk of nonsense": (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"400",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_broken_requests_are_answered_and_closed(hasty: str, name: str) -> None:
    content, status = REQUESTS[name]
    answer = send_raw(address_of(hasty), content)
    assert answer.split(b" ")[1] == status, answer
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body) == {"code", "message"}
    assert answers(hasty)


def test_a_trickle_of_bytes_does_not_extend_the_time(hasty: str) -> None:
    with socket.create_connection(address_of(hasty), timeout=20) as client:
        client.sendall(b"POST /v1/classify HTTP/1.1\r\n")
        received = b""
        client.settimeout(0.05)
        for i in range(200):
            try:
                client.sendall(b"a%d: b\r\n" % i)
                received = client.recv(1000)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert i < 100
        assert received[:12] in (b"HTTP/1.1 408", b"")
    assert answers(hasty)


def test_a_client_that_closes_its_side_leaves_no_work(hasty: str) -> None:
    with socket.create_connection(address_of(hasty), timeout=20) as client:
        client.sendall(head(len(GOOD)) + GOOD)
        client.shutdown(socket.SHUT_WR)
        while client.recv(2**16):
            pass
    assert answers(hasty)


def test_connections_beyond_the_limit_get_503(hasty: str) -> None:
    clients = [socket.create_connection(address_of(hasty), timeout=20) for _ in range(30)]
    statuses = [client.recv(1000)[9:12] for client in clients]
    for client in clients:
        client.close()
    assert statuses.count(b"503") >= 10
    assert set(statuses) <= {b"503", b"408"}
    assert answers(hasty)


def test_requests_in_one_packet_are_answered_in_order(hasty: str) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = send_raw(address_of(hasty), request * 3 + last)
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.endswith(b'{"status":"ready"}')


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=hostile_requests())
def test_hostile_requests_never_give_500(url: str, content: bytes) -> None:
    answer = send_raw(address_of(url), content, half_close=0.2)
    assert not answer or answer[:9] == b"HTTP/1.1 "
    assert b"HTTP/1.1 5" not in answer
