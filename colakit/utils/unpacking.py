"""Reading of plain, gzip, xz and zstd files; one that unpacks to far more than its size is refused."""

from __future__ import annotations

import contextlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from colakit.errors import ColakitError, first_line
from colakit.utils.extras import import_extra

MAX_RATIO = 100  # unpacked to packed size; text reaches 3 to 10
MIN_LIMIT = 2**20  # bytes to which any packed file may unpack
MAX_STREAMS = 100_000  # concatenated in one file; bgzip writes one for each 64 KiB
MAX_XZ_MEMORY = 2**28  # bytes; files of `xz -9` need 65 MiB
MAX_ZSTD_WINDOW = 27  # log2 of bytes; the default of `zstd`
CHUNK = 2**16  # packed bytes read at a time


def import_zstd() -> Any:
    """Return the module of zstd, which Python has from 3.14 on."""
    return import_extra("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", "data")


def _zstd() -> Any:
    zstd = import_zstd()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW})


DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # 31: a gzip header and checksum
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY),
    ".zst": _zstd,
}


def max_unpacked(packed: int) -> int:
    """Return the number of bytes to which `packed` bytes may unpack."""
    return max(MIN_LIMIT, MAX_RATIO * packed)


@contextlib.contextmanager
def open_unpacked(path: Path, hint: str = "Is the file complete?") -> Iterator[IO[bytes]]:
    """Open a file of bytes; a name that ends in `.gz`, `.xz` or `.zst` is unpacked while it is read.

    Args:
        hint: for a file that cannot be opened.

    Raises:
        ColakitError: also while it is read: if the file cannot be read, is damaged, or unpacks to more than
            `max_unpacked` of the bytes read so far.
    """
    try:
        opened = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ColakitError(f"{path}: {getattr(error, 'strerror', None) or error}", hint=hint) from error
    new_decoder = DECODERS.get(path.suffix.lower())
    with opened as file:
        yield file if new_decoder is None else io.BufferedReader(_Unpacked(file, new_decoder, path), CHUNK)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file of one or more gzip, xz or zstd streams."""

    def __init__(self, file: IO[bytes], new_decoder: Callable[[], Any], path: Path) -> None:
        self.file, self.new_decoder, self.path = file, new_decoder, path
        self.decoder = new_decoder()
        self.rest = b""  # packed bytes that the decoder has not taken
        self.size, self.num_streams = 0, 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._unpack_into(buffer)
        except Exception as error:  # the decoders share no class of errors
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ColakitError(
                f"{self.path}: cannot be read ({reason})", hint="Is the file complete?"
            ) from error

    def _unpack_into(self, buffer: Any) -> int:
        unpacked = b""
        while not unpacked:
            if not self.decoder.eof:
                unpacked = self.decoder.decompress(self.rest, len(buffer))
                # lzma and zstd keep these bytes; at the end of a stream they are in `unused_data`, too
                self.rest = b"" if self.decoder.eof else getattr(self.decoder, "unconsumed_tail", b"")
            if not unpacked and not self.rest and not self._read_more():
                return 0
        self.size += len(unpacked)
        if self.size > (limit := max_unpacked(self.file.tell())):
            raise OSError(f"it unpacks to more than {limit >> 20} MiB, {MAX_RATIO} times its size")
        buffer[: len(unpacked)] = unpacked
        return len(unpacked)

    def _read_more(self) -> bool:
        """Read packed bytes into `rest`, for the next stream if one has ended; return False at the end."""
        if not self.decoder.eof:
            self.rest = self.file.read(CHUNK)
            if not self.rest:
                raise EOFError("it ends in the middle of the packed data")
            return True
        self.rest = self.decoder.unused_data.lstrip(b"\0")  # zeros may fill up a stream
        while not self.rest and (packed := self.file.read(CHUNK)):
            self.rest = packed.lstrip(b"\0")
        if not self.rest:
            return False
        self.decoder = self.new_decoder()
        self.num_streams += 1
        if self.num_streams > MAX_STREAMS:
            raise OSError(f"it has more than {MAX_STREAMS:,} streams")
        return True
