"""Where the tables of a corpus lie: in a folder, in a zip, or in one file.

Of a zip, members are read as streams and up to a size; nothing is unpacked to a path that it names.
"""

from __future__ import annotations

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from colakit.data.tables import Readable
from colakit.errors import ColakitError

COLA_FILES = {
    "train": "in_domain_train.tsv",
    "id_dev": "in_domain_dev.tsv",
    "ood_dev": "out_of_domain_dev.tsv",
}
GLUE_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
TABLE_ENDINGS = (".tsv", ".csv", ".txt")
MAX_MEMBER_BYTES = 256 * 2**20  # of one file inside a zip, unpacked
MAX_RATIO = 100  # of its size unpacked to that in the zip; text packs to a third or a tenth
BROKEN_ZIP = (  # what zipfile lets out on damaged bytes
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)

Opener = Callable[[], contextlib.AbstractContextManager[Readable]]


def file_opener(path: Path) -> Opener:
    """Return how to open a file; what goes wrong there is a `ColakitError`."""

    @contextlib.contextmanager
    def opened() -> Iterator[Readable]:
        try:
            with path.open("rb") as file:
                yield file
        except (OSError, ValueError) as error:  # a NUL in its name is a ValueError
            raise ColakitError(
                f"{path}: {getattr(error, 'strerror', None) or error}",
                hint="Check the path given with --data or data.splits.",
            ) from error

    return opened


def find_splits(path: Path) -> dict[str, tuple[str, Opener]]:
    """Return split name -> (what to call the file, how to open it), for a zip, a folder or one file.

    Raises:
        ColakitError: if there are no files of CoLA's or GLUE's names.
    """
    if path.is_dir():
        members = {
            file.relative_to(path).as_posix(): file_opener(file)
            for file in sorted(path.rglob("*.tsv"))
            if file.is_file()
        }
    elif zipfile.is_zipfile(path):
        members = _zip_members(path)
    elif path.suffix.lower() in TABLE_ENDINGS:
        return {"train": (str(path), file_opener(path))}
    elif path.exists():
        raise ColakitError(f"{path}: is no zip, folder, TSV or CSV", hint="--data takes one of these.")
    else:
        raise ColakitError(
            f"{path}: not there", hint="--data takes `cola`, `builtin`, a zip, a folder, a TSV or a CSV."
        )
    found = _match_layout(members)
    if not found:
        wanted = f"{', '.join(COLA_FILES.values())} (CoLA) or {', '.join(GLUE_FILES.values())} (GLUE)"
        raise ColakitError(
            f"{path}: holds none of {wanted}", hint="Name files of your own: --set data.splits.train=FILE"
        )
    return {split: (f"{path}/{member}", members[member]) for split, member in found.items()}


def _match_layout(members: Mapping[str, object]) -> dict[str, str]:
    """Return split name -> member, for CoLA's layout or GLUE's, whichever lies nearer to the top.

    Raw text is preferred to tokenized.
    """
    layouts = [_matches(layout, members) for layout in (COLA_FILES, GLUE_FILES)]
    whole = [found for found in layouts if "train" in found or len(found) > 1]
    return min(whole, key=lambda found: min(name.count("/") for name in found.values()), default={})


def _matches(layout: Mapping[str, str], members: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, filename in layout.items():
        candidates = [name for name in members if PurePosixPath(name).name == filename]
        candidates.sort(
            key=lambda name: (PurePosixPath(name).parent.name == "tokenized", name.count("/"), name)
        )
        if candidates:
            found[split] = candidates[0]
    return found


def _zip_members(path: Path) -> dict[str, Opener]:
    def opener(member: str) -> Opener:
        @contextlib.contextmanager
        def opened() -> Iterator[Readable]:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                    yield BoundedMember(file, archive.getinfo(member))
            except BROKEN_ZIP as error:
                raise ColakitError(f"{path}: {member} cannot be unpacked ({error})") from error

        return opened

    try:
        with zipfile.ZipFile(path) as archive:
            return {name: opener(name) for name in archive.namelist() if name.endswith(".tsv")}
    except BROKEN_ZIP as error:
        raise ColakitError(f"{path}: is a broken zip ({error})", hint="Download it again.") from error


class BoundedMember:
    """A file in a zip that ends in a `ValueError` where it unpacks to more than text could.

    Args:
        file: the opened member.
        info: what the zip says of it.
    """

    def __init__(self, file: Readable, info: zipfile.ZipInfo) -> None:
        self.file = file
        self.most = min(MAX_MEMBER_BYTES, max(2**20, MAX_RATIO * info.compress_size))
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        raw = self.file.read(size)
        self.count += len(raw)
        if self.count > self.most:
            raise ValueError(f"it unpacks to more than {self.most >> 20} MiB")
        return raw
