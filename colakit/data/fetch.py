"""Download of CoLA with a checksum for each raw file, as a mirror may repack the archive."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from colakit.data.corpus_files import BROKEN_ZIP
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.utils.download import DownloadError, RetryPolicy, download
from colakit.utils.locks import Lock

COLA_URL = "https://nyu-mll.github.io/CoLA/cola_public_1.1.zip"
COLA_SHA256 = {
    "in_domain_train.tsv": "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    "in_domain_dev.tsv": "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
    "out_of_domain_dev.tsv": "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
}
MAX_COLA_BYTES = 2**22  # per file; the largest has 430 kB
MAX_ARCHIVE_BYTES = 2**24  # the archive has 255 kB
PATIENCE = RetryPolicy()
STAGING = ".cola-"  # prefix of the temporary folder that is renamed to CoLA's


def cola_folder(cache: Path) -> Path:
    """Return the cache's folder of CoLA."""
    return cache / "cola"


def is_fetched(cache: Path) -> bool:
    """Return whether the cache has every file of CoLA with its published checksum."""
    try:
        files = {name: (cola_folder(cache) / name).read_bytes() for name in COLA_SHA256}
    except OSError:
        return False
    return all(hashlib.sha256(raw).hexdigest() == COLA_SHA256[name] for name, raw in files.items())


def fetch_cola(cache: Path, mirrors: Sequence[str] = ()) -> Path:
    """Download CoLA's three raw files to the cache if needed, and return their folder.

    Waits for a download by another process. The URLs `mirrors` are tried before the CoLA site.

    Raises:
        ColakitError: if no source provides the archive with CoLA's files.
    """
    if is_fetched(cache):
        return cola_folder(cache)
    sources = (*mirrors, COLA_URL)
    patience = (len(sources) + 1) * PATIENCE.total_seconds
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with Lock(cache / ".cola.lock").held(wait_seconds=patience):
            if not is_fetched(cache):
                _fetch(cache, sources)
    except OSError as error:
        raise ColakitError(
            f"{cola_folder(cache)}: cannot be written ({error.strerror})",
            hint="Make room, or name another folder with --set cache=FOLDER",
            exit_code=EXIT_FAILED,
        ) from error
    return cola_folder(cache)


def _fetch(cache: Path, sources: Sequence[str]) -> None:
    for left in cache.glob(f"{STAGING}*"):  # of killed processes
        shutil.rmtree(left, ignore_errors=True)
    failures: list[str] = []
    for url in sources:
        try:
            archive = download(url, max_bytes=MAX_ARCHIVE_BYTES, policy=PATIENCE)
            files = verified_files(archive)
        except (DownloadError, ValueError) as error:
            failures.append(f"{url}: {error}")
            continue
        staging = cache / f"{STAGING}{os.getpid()}"
        staging.mkdir()
        try:  # all files or none
            for name, raw in files.items():
                (staging / name).write_bytes(raw)
            try:
                staging.rename(cola_folder(cache))
            except OSError:  # the folder exists, with damaged files
                for name in files:
                    (staging / name).replace(cola_folder(cache) / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return
    raise ColakitError(
        f"CoLA could not be downloaded ({'; '.join(failures)})",
        hint="Download cola_public_1.1.zip on a machine with a network and pass --data cola_public_1.1.zip "
        "(a zip or its unpacked folder), or name a mirror: --set data.mirrors=[URL]",
    )


def verified_files(archive: bytes) -> dict[str, bytes]:
    """Return the archive's three raw files; raise `ValueError` if one is missing or has another checksum."""
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            for member in zipped.namelist():
                name = member.rpartition("/")[2]
                if name in COLA_SHA256 and "tokenized" not in member:
                    with zipped.open(member) as file:
                        files[name] = file.read(MAX_COLA_BYTES)
    except BROKEN_ZIP as error:
        raise ValueError(f"not a zip ({error})") from error
    for name, expected in COLA_SHA256.items():
        if name not in files:
            raise ValueError(f"has no {name}")
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != expected:
            raise ValueError(f"its {name} has SHA-256 {digest[:12]}…, CoLA's has {expected[:12]}…")
    return files
