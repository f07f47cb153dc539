"""One small file over HTTP, into memory: tried again, resumed where it broke off, bounded in everything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from colakit.errors import first_line

CHUNK = 2**16  # bytes asked for at a time
MAX_REDIRECTS = 5
PASSING = {408, 425, 429, 500, 502, 503, 504}  # status codes that another attempt may not meet


class DownloadError(Exception):
    """A file that could not be had; the message says why."""


class _BrokenOffError(Exception):
    """An attempt that failed in a way the next may not."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a source is tried.

    Attributes:
        attempts: requests, at most.
        pause_seconds: before the second attempt; doubled before each one after it.
        stall_seconds: without a byte, after which an attempt is given up.
        total_seconds: for all attempts together.
    """

    attempts: int = 4
    pause_seconds: float = 1.0
    stall_seconds: float = 20.0
    total_seconds: float = 300.0


def download(url: str, *, max_bytes: int, patience: RetryPolicy) -> bytes:
    """Return the file at `url`.

    Raises:
        DownloadError: if it is refused, larger than `max_bytes`, or does not arrive in time.
    """
    part = _Part(url, max_bytes, time.monotonic() + patience.total_seconds)
    pause = patience.pause_seconds
    for attempt in range(1, patience.attempts + 1):
        try:
            return part.complete(patience.stall_seconds)
        except _BrokenOffError as error:
            reason = str(error)
        if attempt < patience.attempts:
            time.sleep(min(pause, max(0.0, part.deadline - time.monotonic())))
            pause *= 2
    raise DownloadError(f"{reason}, at the last of {patience.attempts} attempts")


class _Part:
    """What has arrived of a file, and by what the server knows that it has not changed since."""

    def __init__(self, url: str, max_bytes: int, deadline: float) -> None:
        self.url, self.max_bytes, self.deadline = url, max_bytes, deadline
        self.body = bytearray()
        self.validator: str | None = None

    def complete(self, stall_seconds: float) -> bytes:
        """Ask for what is missing, and return the whole."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity"}  # or lengths and ranges would be those of packed bytes
        if self.body and self.validator:
            headers |= {"Range": f"bytes={len(self.body)}-", "If-Range": self.validator}
        try:
            with requests.Session() as session:
                session.max_redirects = MAX_REDIRECTS
                with session.get(self.url, headers=headers, stream=True, timeout=stall_seconds) as response:
                    self._take(response.status_code, response.headers, response.raw)
        except (requests.TooManyRedirects, requests.exceptions.InvalidURL, ValueError) as error:
            raise DownloadError(first_line(error)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _BrokenOffError(first_line(error)) from error
        return bytes(self.body)

    def _take(self, status: int, headers: Mapping[str, str], raw: object) -> None:
        if status in PASSING:
            raise _BrokenOffError(f"the server answers {status}")
        if status not in (200, 206):
            raise DownloadError(f"the server answers {status}")
        if not (status == 206 and headers.get("Content-Range", "").startswith(f"bytes {len(self.body)}-")):
            if status == 206:
                raise DownloadError("the server answers with another part than was asked for")
            self.body.clear()
        tag = headers.get("ETag", "")
        self.validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        length = headers.get("Content-Length", "")
        wanted = len(self.body) + int(length) if length.isdecimal() else None
        if wanted is not None and wanted > self.max_bytes:
            raise DownloadError(f"it has {wanted:,} bytes; at most {self.max_bytes:,} are wanted")
        while chunk := raw.read1(CHUNK):  # type: ignore[attr-defined]
            self.body += chunk
            if len(self.body) > self.max_bytes:
                raise DownloadError(f"it has more than {self.max_bytes:,} bytes")
            if time.monotonic() > self.deadline:
                raise DownloadError(f"it is too slow: {len(self.body):,} bytes have arrived")
        if wanted is not None and len(self.body) < wanted:
            raise _BrokenOffError(f"the connection broke off at {len(self.body):,} of {wanted:,} bytes")
