"""HTTP download of a small file into memory, with retries, resumption and limits on size and time."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass

from colakit.errors import first_line

CHUNK = 2**16  # bytes per read
MAX_REDIRECTS = 5
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
NO_NETWORK = {errno.ENETUNREACH, errno.EHOSTUNREACH}


class DownloadError(Exception):
    """A download failed; the message gives the reason."""


class _RetryError(Exception):
    """An attempt failed; another may succeed."""


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of a download.

    Attributes:
        attempts: maximum number of requests.
        pause_seconds: pause before the second attempt; doubles before each further one.
        stall_seconds: time without data after which an attempt ends.
        total_seconds: time limit for all attempts together.
    """

    attempts: int = 4
    pause_seconds: float = 1.0
    stall_seconds: float = 20.0
    total_seconds: float = 300.0


def download(url: str, *, max_bytes: int, policy: RetryPolicy) -> bytes:
    """Return the file at `url`.

    Raises:
        DownloadError: if every attempt fails, the file exceeds `max_bytes`, or the time limit is reached.
    """
    part = _PartialFile(url, max_bytes, time.monotonic() + policy.total_seconds)
    pause = policy.pause_seconds
    for attempt in range(1, policy.attempts + 1):
        try:
            return part.complete(policy.stall_seconds)
        except _RetryError as error:
            reason = str(error)
        if attempt < policy.attempts:
            time.sleep(min(pause, max(0.0, part.deadline - time.monotonic())))
            pause *= 2
    raise DownloadError(f"{reason}, at the last of {policy.attempts} attempts")


class _PartialFile:
    """The bytes received so far, and the ETag or date that detects a changed file."""

    def __init__(self, url: str, max_bytes: int, deadline: float) -> None:
        self.url, self.max_bytes, self.deadline = url, max_bytes, deadline
        self.body = bytearray()
        self.validator: str | None = None

    def complete(self, stall_seconds: float) -> bytes:
        """Request the missing bytes and return the whole file."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity"}  # lengths and ranges must not be of compressed bytes
        if self.body and self.validator:
            headers |= {"Range": f"bytes={len(self.body)}-", "If-Range": self.validator}
        try:
            with requests.Session() as session:
                session.max_redirects = MAX_REDIRECTS
                with session.get(self.url, headers=headers, stream=True, timeout=stall_seconds) as response:
                    self._read(response.status_code, response.headers, response.raw)
        except (requests.TooManyRedirects, requests.exceptions.InvalidURL, ValueError) as error:
            raise DownloadError(first_line(error)) from error
        except requests.ConnectionError as error:
            if (offline := _offline_reason(error)) is not None:
                raise DownloadError(offline) from error
            raise _RetryError(first_line(error)) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _RetryError(first_line(error)) from error
        return bytes(self.body)

    def _read(self, status: int, headers: Mapping[str, str], raw: object) -> None:
        if status not in (200, 206):
            error = _RetryError if status in RETRY_STATUSES else DownloadError
            raise error(f"the server answers {status}")
        if not (status == 206 and headers.get("Content-Range", "").startswith(f"bytes {len(self.body)}-")):
            if status == 206:
                raise DownloadError("the server sent a different byte range than requested")
            self.body.clear()
        tag = headers.get("ETag", "")
        self.validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        length = headers.get("Content-Length", "")
        total = len(self.body) + int(length) if length.isdecimal() else None
        if total is not None and total > self.max_bytes:
            raise DownloadError(f"the file has {total:,} bytes; at most {self.max_bytes:,} are allowed")
        while chunk := raw.read1(CHUNK):  # type: ignore[attr-defined]
            self.body += chunk
            if len(self.body) > self.max_bytes:
                raise DownloadError(f"the file has more than {self.max_bytes:,} bytes")
            if time.monotonic() > self.deadline:
                raise DownloadError(f"too slow: only {len(self.body):,} bytes received")
        if total is not None and len(self.body) < total:
            raise _RetryError(f"connection lost after {len(self.body):,} of {total:,} bytes")


def _offline_reason(error: Exception) -> str | None:
    """Return why another attempt cannot succeed (no name service or no route), or None."""
    from urllib3.exceptions import NameResolutionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, NameResolutionError):
        return "the name of the server cannot be resolved; is there a network?"
    if getattr(getattr(reason, "__cause__", None), "errno", None) in NO_NETWORK:
        return "no network reaches the server"
    return None
