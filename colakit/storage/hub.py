"""Download of hub models with `snapshot_download`, plus retries, time-outs and checksums it lacks; upload."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from colakit.errors import EXIT_FAILED, ColakitError, first_line
from colakit.utils.files import CHUNK, sha256_of

HUB_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
]
PAUSES = (1.0, 2.0)  # seconds before each retry after a 5xx answer


def fetch_from_hub(name: str, flag: str) -> Path:
    """Return the folder of a model in the hub's cache; missing files are downloaded and verified.

    Args:
        flag: command-line flag to name in errors.

    Raises:
        ColakitError: if the download fails, or a file does not match its checksum.
    """
    _set_timeouts()
    try:
        for pause in PAUSES:
            try:
                return _snapshot(name)
            except Exception as error:
                if not _is_server_error(error):
                    raise
            time.sleep(pause)
        return _snapshot(name)
    except ColakitError:
        raise
    except Exception as error:  # huggingface_hub raises many error types
        raise ColakitError(
            f"{flag}: {name!r} is not a local folder, and its hub download failed ({first_line(error)})",
            hint="Without a network: put config.json, model.safetensors, vocab.json and merges.txt of that "
            f"model into a folder and pass {flag} FOLDER, or use the built-in base: {flag} builtin.",
        ) from error


def check_push(name: str) -> None:
    """Raise `ColakitError` unless `name` is OWNER/NAME and this user has a token of the hub."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise ColakitError(f"--push {name}: must be OWNER/NAME, the id of a model of the hub")
    if get_token() is None:
        raise ColakitError(
            f"--push {name}: no token of the hub", hint="Log in with `hf auth login`, or set HF_TOKEN."
        )


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder as the model `name`, which is created as a private one if missing.

    Returns:
        The address of the commit.

    Raises:
        ColakitError: if the upload fails.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True, private=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}, exported by colakit"
        )
        return str(commit.commit_url)
    except Exception as error:  # huggingface_hub raises many error types
        raise ColakitError(
            f"--push {name}: the upload failed ({first_line(error)})",
            hint=f"The folder {folder} is complete; upload it with `hf upload {name} {folder}`.",
            exit_code=EXIT_FAILED,
        ) from error


def _set_timeouts() -> None:
    """Set a timeout on requests that huggingface_hub sends without one (file listings)."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _add_timeout not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _add_timeout]}


def _add_timeout(request: Any) -> None:
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    limits = request.extensions.get("timeout", {})
    timeout = {name: HF_HUB_DOWNLOAD_TIMEOUT if limit is None else limit for name, limit in limits.items()}
    request.extensions = {**request.extensions, "timeout": timeout}


def _is_server_error(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a 5xx answer."""
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
    if not any(folder.glob("*.safetensors*")):  # older models
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin*"]))
    for path in sorted(folder.iterdir()):
        if path.resolve() not in before:
            _verify(path)
    return folder


def _verify(path: Path) -> None:
    """Delete a downloaded file that does not match its checksum and raise `ColakitError`.

    huggingface_hub names blobs by the hub's checksum: SHA-256 for LFS files, git's SHA-1 for others.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":  # without symlinks there is no checksum
        return
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        checksum = sha256_of(blob)
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        with blob.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        checksum = digest.hexdigest()
    else:
        return
    if checksum != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ColakitError(
            f"{path.name} was downloaded with checksum {checksum[:12]}…, but must have {blob.name[:12]}…; "
            "it was deleted",
            hint="Run again, or download the model elsewhere and pass its folder.",
        )
