"""Listening with uvicorn: bounded connections, time-outs, and an end that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import re
import signal
import socket
import struct
import sys
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from colakit.config.serve import ServeSettings
from colakit.errors import ColakitError
from colakit.serving.app import Service, make_app
from colakit.serving.http import CODES

MAX_HEAD_BYTES = 2**14
END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
BACKLOG = 2048
LAST_REQUEST_SECONDS = 1.0  # from a connection to its request, while the server stops
SO_ATTACH_FILTER = 26  # of Linux; Python's socket module does not name it
DROP_SYN = (  # classic BPF of a TCP segment: code, jump if true, jump if false, operand
    (0x30, 0, 0, 13),  # load byte 13, the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all of it
)
STOP_SECONDS = 30  # for the requests in flight
KEEP_ALIVE_SECONDS = 30


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that refuses connections beyond the limit, and heads that do not arrive in time.

    The application limits the time of a body.
    """

    settings = ServeSettings()
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Refuse the connection if there are too many; else wait for a request's head."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503, "too many connections", "retry-after: 1\r\n")
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived, and stop or start the time of the head."""
        if self.conn.their_state is h11.IDLE:
            if self._head_timer is None:
                self._await_head()
            if len(data) > MAX_HEAD_BYTES and END_OF_HEAD.search(data, 0, MAX_HEAD_BYTES) is None:
                self.send_400_response("")  # h11 checks only heads that arrive in parts
                return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with JSON, unless another answer is being sent."""
        self._refuse(400, "not a valid HTTP/1.1 request, or its head is too long")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.receive_seconds, self._late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._refuse(408, "the request did not arrive in time")

    def _refuse(self, status: int, message: str, header: str = "") -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self._is_free():
            body = json.dumps({"code": CODES[status], "message": message}).encode()
            head = (
                f"HTTP/1.1 {status} {CODES[status]}\r\ncontent-type: application/json\r\n{header}"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_free(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or not self.cycle.response_started


class Server(uvicorn.Server):
    """A server that announces its end before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.listeners: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`."""
        self.listeners = sockets or []
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first SIGTERM; stop at Ctrl-C or a second signal."""
        if sig == signal.SIGTERM and not self.service.is_draining:
            self.service.is_draining = True
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self.service.settings.drain_seconds, self._refuse_new)
        else:
            self._stop()

    def _refuse_new(self) -> None:
        """Have the system accept no more connections, and stop once those that it has accepted have sent."""
        for listener in self.listeners:
            drop_new_connections(listener)
        asyncio.get_running_loop().call_later(LAST_REQUEST_SECONDS, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ColakitError: if the address or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            stack.pop_all()
    except OSError as error:
        raise ColakitError(
            f"--host {host} --port {port}: cannot listen ({error.strerror or error})",
            hint="Choose another port with --port, or stop the program that uses it.",
        ) from error
    return listener


def drop_new_connections(listener: socket.socket) -> None:
    """Have the system ignore new connections; those that it has begun to accept can still be accepted.

    Linux alone can: elsewhere the system keeps one connection waiting. A client that was ignored
    tries again after a second, and is refused once the listener is closed.
    """
    if sys.platform != "linux":
        listener.listen(0)
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in DROP_SYN))
    program = struct.pack("@HP", len(DROP_SYN), ctypes.addressof(instructions))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def make_server(service: Service) -> Server:
    """Return a server for the routes of `make_app`."""
    protocol = type("Protocol", (BoundedProtocol,), {"settings": service.settings})
    config = uvicorn.Config(
        make_app(service),
        http=protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Server(config, service)


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; requests in flight are answered."""
    try:
        asyncio.run(make_server(service).serve(sockets=[listener]))
    finally:
        service.store.close()
