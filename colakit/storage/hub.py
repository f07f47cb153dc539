"""Models by their name on the hub. Its library resumes, retries and locks what it downloads."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from colakit.errors import ColakitError, first_line
from colakit.utils.files import sha256_of

HUB_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
]
PAUSES = (1.0, 2.0)  # seconds, before the hub is asked again when it is out of order


def fetch_from_hub(name: str, flag: str) -> Path:
    """Return the folder of a model in the hub's cache, downloading and verifying what is not there yet.

    Args:
        flag: which asked for it, for errors.

    Raises:
        ColakitError: if the hub does not give it, or gives something else than it says.
    """
    _never_wait_for_ever()
    try:
        for pause in PAUSES:
            try:
                return _snapshot(name)
            except Exception as error:
                if not _is_out_of_order(error):
                    raise
            time.sleep(pause)
        return _snapshot(name)
    except ColakitError:
        raise
    except Exception as error:  # the hub's library passes on whatever its transport raises
        raise ColakitError(
            f"{flag}: {name!r} is no local folder, and the hub did not give it ({first_line(error)})",
            hint="Without a network: put config.json, model.safetensors, vocab.json and merges.txt of that "
            f"model into a folder and pass {flag} FOLDER, or take the base that comes along: {flag} builtin.",
        ) from error


def _never_wait_for_ever() -> None:
    """Give a timeout to the requests that the library sends without one: those that list."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _bound not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}


def _bound(request: Any) -> None:
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    limits = request.extensions.get("timeout", {})
    request.extensions = {
        **request.extensions,
        "timeout": {
            name: HF_HUB_DOWNLOAD_TIMEOUT if limit is None else limit for name, limit in limits.items()
        },
    }


def _is_out_of_order(error: BaseException | None) -> bool:
    """Whether the hub answered so, which the library may have wrapped."""
    while error is not None:
        if getattr(getattr(error, "response", None), "status_code", 0) >= 500:
            return True
        error = error.__cause__
    return False


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
    before = {blob.resolve() for blob in blobs.iterdir()} if blobs.is_dir() else set()
    folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    if not any(folder.glob("*.safetensors*")):  # an older model
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model.bin"]))
    for path in sorted(folder.iterdir()):
        if path.resolve() not in before:
            _verify(path)
    return folder


def _verify(path: Path) -> None:
    """Delete a downloaded file whose content is not what the hub says, and raise `ColakitError`.

    The library names a blob by the hub's checksum: SHA-256 of a large file, git's SHA-1 of a small one.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":  # where there are no links, it keeps no checksum
        return
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        found = sha256_of(blob)
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        raw = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    else:
        return
    if found != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ColakitError(
            f"{path.name} was downloaded with checksum {found[:12]}…, the hub says "
            f"{blob.name[:12]}…; it was deleted",
            hint="Run again, or fetch the model elsewhere and pass its folder.",
        )
