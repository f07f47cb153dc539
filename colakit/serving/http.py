"""Bodies, errors and access of HTTP requests. Errors are JSON, `{"code": …, "message": …}`."""

from __future__ import annotations

import asyncio
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from colakit.config.serve import ServeSettings
from colakit.utils.documents import Bounds, validate_json

M = TypeVar("M", bound=BaseModel)

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    422: "invalid_model",
    429: "queue_full",
    500: "internal_error",
    503: "unavailable",
}


class HTTPError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass
class Access:
    """Tokens that requests must carry as `Authorization: Bearer …`; None allows all."""

    token: str | None = None
    admin_token: str | None = None
    adapter_dir: Path | None = None

    def require(self, request: Request, *, admin: bool = False) -> None:
        """Raise `HTTPError` unless the request carries a token that allows it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        allowed = [token for token in (self.admin_token, None if admin else self.token) if token]
        if not admin and self.token is None:
            return
        if admin and self.admin_token is None:
            raise HTTPError(403, "adapters cannot be changed; start the server with --admin-token")
        if not any(hmac.compare_digest(given, token.encode()) for token in allowed):
            raise HTTPError(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})


async def read_body(request: Request, settings: ServeSettings) -> bytes:
    """Return the body, of bounded size, that arrives in time."""
    limit = settings.max_body_bytes
    message = f"the body is longer than {limit:,} bytes"
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > limit:
        raise HTTPError(413, message, {"connection": "close"})
    body = bytearray()

    async def receive() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > limit:
                raise HTTPError(413, message, {"connection": "close"})

    try:
        await asyncio.wait_for(receive(), settings.receive_seconds)
    except asyncio.TimeoutError:
        raise HTTPError(408, "the body did not arrive in time", {"connection": "close"}) from None
    return bytes(body)


def parse_body(raw: bytes, kind: type[M], settings: ServeSettings) -> M:
    """Return a body as a `kind`, or raise `HTTPError`."""
    values = 2 * settings.max_sentences + 1000
    try:
        return validate_json(raw, kind, Bounds(settings.max_body_bytes, values, 1000))
    except ValueError as error:
        raise HTTPError(400, f"body: {error}") from None


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer of JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(), status, headers, "application/json")


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    return json_response({"code": CODES[status], "message": message}, status, headers)
