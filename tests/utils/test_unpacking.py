"""Packed files of several streams."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from colakit.errors import ColakitError
from colakit.utils.unpacking import CHUNK, open_unpacked

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
STREAMS = (b"a" * (3 * CHUNK), b"", b"two" * CHUNK, b"three")  # some need several calls of the decoder


@pytest.mark.parametrize("ending", PACKERS)
def test_all_streams_are_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{ending}"
    path.write_bytes(b"".join(map(PACKERS[ending], STREAMS)))
    with open_unpacked(path) as file:
        assert file.read() == b"".join(STREAMS)


@pytest.mark.parametrize("ending", PACKERS)
def test_other_bytes_after_a_long_stream_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{ending}"
    path.write_bytes(PACKERS[ending](STREAMS[0]) + b"no stream")
    with pytest.raises(ColakitError, match="cannot be read"), open_unpacked(path) as file:
        file.read()
