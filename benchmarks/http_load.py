"""Load on an HTTP server: clients with one connection each, in one thread."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Connection:
    """A keep-alive connection that reads bodies by their content-length; it reconnects when it is closed."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: Any, method: str = "POST", token: str = "") -> tuple[int, bytes]:
        """Return (status, body); a request on a connection that the server had closed is sent again."""
        content = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: {len(content)}\r\n"
        head += f"authorization: Bearer {token}\r\n" if token else ""
        for _ in range(2):
            is_new = self._streams is None
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.host, self.port)
            reader, writer = self._streams
            try:
                writer.write(f"{head}\r\n".encode() + content)
                return await self._read(reader)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.close()
                is_idle_close = isinstance(error, ConnectionError) or not error.partial
                if is_new or not is_idle_close:
                    raise
        raise ConnectionError("closed twice")

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), body

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        seconds: from request to answer, of each request.
        failures: statuses and exceptions of requests that were not answered with 200.
    """

    elapsed: float = 0.0
    sentences: int = 0
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Sentences a second."""
        return self.sentences / self.elapsed

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency, in milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def run_load(
    host: str,
    port: int,
    make_body: Callable[[int], dict[str, Any]],
    *,
    clients: int,
    seconds: float,
    rate: float | None = None,
) -> Load:
    """Post to /v1/classify from `clients` connections for `seconds`.

    Args:
        make_body: number of the request -> body with a list `input`.
        rate: requests a second in all, at fixed times; None sends the next request after each answer.
    """
    load, numbers = Load(), iter(range(10**9))

    async def client(index: int, began: float) -> None:
        connection, due = Connection(host, port), began + (index / rate if rate else 0)
        while time.monotonic() < began + seconds:
            if rate is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            body = make_body(next(numbers))
            sent = due if rate is not None else time.monotonic()
            try:
                status, _ = await connection.post("/v1/classify", body)
            except (OSError, asyncio.IncompleteReadError) as error:
                load.failures.append(type(error).__name__)
                connection.close()
                continue
            if status != 200:
                load.failures.append(str(status))
                continue
            load.seconds.append(time.monotonic() - sent)
            load.sentences += len(body["input"])
            due += clients / rate if rate else 0
        connection.close()

    async def all_clients() -> None:
        began = time.monotonic()
        await asyncio.gather(*(client(index, began) for index in range(clients)))
        load.elapsed = time.monotonic() - began

    asyncio.run(all_clients())
    return load
