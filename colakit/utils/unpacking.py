"""Reading of plain, gzip and xz files; a packed file that unpacks to far more than its size is refused."""

from __future__ import annotations

import contextlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from colakit.errors import ColakitError, first_line

MAX_RATIO = 100  # unpacked to packed size; text reaches 3 to 10
MIN_LIMIT = 2**20  # bytes to which any packed file may unpack
MAX_STREAMS = 100_000  # concatenated in one file; bgzip writes one for each 64 KiB
MAX_XZ_MEMORY = 2**28  # bytes; files of `xz -9` need 65 MiB
CHUNK = 2**16  # packed bytes read at a time

DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # 31: a gzip header and checksum
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY),
}


def max_unpacked(packed: int) -> int:
    """Return the number of bytes to which `packed` bytes may unpack."""
    return max(MIN_LIMIT, MAX_RATIO * packed)


@contextlib.contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of bytes; a name that ends in `.gz` or `.xz` is unpacked while it is read.

    Raises:
        ColakitError: also while it is read: if the file cannot be read, is damaged, or unpacks to more than
            `max_unpacked` of the bytes read so far.
    """
    try:
        with path.open("rb") as file:
            new_decoder = DECODERS.get(path.suffix)
            yield file if new_decoder is None else io.BufferedReader(_Unpacked(file, new_decoder), CHUNK)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ColakitError(f"{path}: cannot be read ({reason})", hint="Is the file complete?") from error


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file of one or more gzip or xz streams."""

    def __init__(self, file: IO[bytes], new_decoder: Callable[[], Any]) -> None:
        self.file, self.new_decoder = file, new_decoder
        self.decoder = new_decoder()
        self.rest = b""  # packed bytes that the decoder has not taken
        self.size, self.num_streams = 0, 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        unpacked = b""
        while not unpacked:
            if not self.decoder.eof:
                unpacked = self.decoder.decompress(self.rest, len(buffer))
                # lzma keeps these bytes itself; at the end of a stream they stand in `unused_data`, too
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
