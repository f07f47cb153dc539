"""Files of a corpus, in a folder, in a zip, or single.

Zip members are read as streams of limited size; nothing is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from colakit.data.tables import FORMATS, refuse_workbook, table_format
from colakit.errors import ColakitError
from colakit.utils.unpacking import DECODERS, max_unpacked, open_unpacked

COLA_FILES = {
    "train": "in_domain_train.tsv",
    "id_dev": "in_domain_dev.tsv",
    "ood_dev": "out_of_domain_dev.tsv",
}
ENDINGS = [f"{ending}{packed}" for ending in FORMATS for packed in ("", *DECODERS)]  # preferred first
LAYOUTS: tuple[dict[str, Sequence[str]], ...] = (  # split -> names of its file, preferred first
    {
        **{split: [name] for split, name in COLA_FILES.items()},
        "id_test": ["cola_in_domain_test.tsv"],  # Kaggle's, without labels
        "ood_test": ["cola_out_of_domain_test.tsv"],
    },
    {split: [split + ending for ending in ENDINGS] for split in ("train", "dev", "validation", "test")},
)
MAX_MEMBER_BYTES = 256 * 2**20  # unpacked size of one zip member
MAX_DIRECTORY_BYTES = 2**20  # list of a zip's members; some 10,000 of them
# exceptions of zipfile on damaged input
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)

Opener = Callable[[], contextlib.AbstractContextManager[IO[bytes]]]


def file_opener(path: Path, hint: str = "Check the path given with --data or data.splits.") -> Opener:
    """Return a function that opens a file and turns its read errors into `ColakitError`."""

    refuse_workbook(str(path))
    return partial(open_unpacked, path, hint)


def find_splits(path: Path) -> dict[str, tuple[str, Opener]]:
    """Return split name -> (displayed file name, opener) for a zip, a folder or one file.

    Raises:
        ColakitError: if the path does not exist or has no files with CoLA's or GLUE's names.
    """
    refuse_workbook(str(path))
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if table_format(file.name) and file.is_file()]
        members = {file.relative_to(path).as_posix(): file_opener(file) for file in files}
    elif not path.exists():
        raise ColakitError(
            f"{path}: file not found",
            hint="--data takes `cola`, `builtin`, a zip, a folder, a table, or hf:NAME.",
        )
    elif zipfile.is_zipfile(path):
        members = _zip_members(path)
    elif table_format(path.name) or path.suffix.lower() == ".txt":
        return {"train": (str(path), file_opener(path))}
    else:
        raise ColakitError(
            f"{path}: not a zip, folder, TSV or CSV, JSON or Parquet file",
            hint=f"The name of a table ends in {', '.join(FORMATS)}, or packed in {', '.join(DECODERS)}.",
        )
    matches = [_match(layout, members) for layout in LAYOUTS]
    usable = [match for match in matches if "train" in match or len(match) > 1]
    if not usable:
        wanted = f"{', '.join(COLA_FILES.values())} (CoLA) or train, dev, validation, test (.tsv, .csv, …)"
        raise ColakitError(
            f"{path}: contains none of {wanted}", hint="Name files of your own: --set data.splits.train=FILE"
        )
    least_nested = min(usable, key=lambda match: min(name.count("/") for name in match.values()))
    return {split: (f"{path}/{member}", members[member]) for split, member in least_nested.items()}


def _match(layout: Mapping[str, Sequence[str]], members: Mapping[str, object]) -> dict[str, str]:
    """Return split name -> member for the members with the layout's file names."""
    match: dict[str, str] = {}
    for split, names in layout.items():

        def preference(member: str, names: Sequence[str] = names) -> tuple[bool, int, int, str]:
            path = PurePosixPath(member)  # raw text first, then the least nested
            return path.parent.name == "tokenized", member.count("/"), names.index(path.name), member

        if candidates := [member for member in members if PurePosixPath(member).name in names]:
            match[split] = min(candidates, key=preference)
    return match


def _zip_members(path: Path) -> dict[str, Opener]:
    def opener(member: str) -> Opener:
        @contextlib.contextmanager
        def opened() -> Iterator[IO[bytes]]:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                    info = archive.getinfo(member)
                    packed = min(info.compress_size, path.stat().st_size)
                    limit = min(MAX_MEMBER_BYTES, max_unpacked(packed))
                    if info.file_size > limit:  # zipfile never reads more than this size
                        raise ValueError(f"it unpacks to more than {limit >> 20} MiB")
                    yield file
            except BROKEN_ZIP as error:
                raise ColakitError(f"{path}: {member} cannot be unpacked ({error})") from error

        return opened

    try:
        with path.open("rb") as file:  # before ZipFile reads the whole list
            record = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if record is not None and record[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
            raise ValueError(f"its list of members is larger than {MAX_DIRECTORY_BYTES >> 20} MiB")
        with zipfile.ZipFile(path) as archive:
            return {name: opener(name) for name in archive.namelist() if name.endswith(tuple(FORMATS))}
    except BROKEN_ZIP as error:
        raise ColakitError(f"{path}: is a broken zip ({error})", hint="Download it again.") from error
