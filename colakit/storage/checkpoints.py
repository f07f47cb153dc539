"""What a run continues from: its last two states, each a folder that is there whole or not at all.

checkpoints/
  step-00000120/   state.pt, and manifest.json with the size and SHA-256 of every file
  step-00000140/
  .staging-…       one that is being written

A state is written into a staging folder, the manifest last; every file and the folder are synced before one
rename makes them a checkpoint. Whatever moment a run dies at, the newest folder with a name that counts is
complete. What a disk does to it later, the manifest tells, and then the one before is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from colakit import __version__
from colakit.errors import ColakitError, first_line
from colakit.storage.tensors import read_tensors, write_tensors
from colakit.utils.files import sha256_of, sync_folder, write_text

FORMAT = 1
KEPT = 2
MAX_MANIFEST_BYTES = 2**20
STATE, MANIFEST = "state.pt", "manifest.json"
PARTS: dict[str, type] = {
    "identity": dict,
    "step": int,
    "progress": dict,
    "tensors": dict,
    "optimizer": dict,
    "per_process": list,
    "metrics_bytes": int,
}
"""What a state must hold, and as what; a run is resumed from all of it or not at all."""
NAME = re.compile(r"step-(\d{8,})")
NOTES = ("seconds", "counted")
"""What stands in the manifest: a state holds no times, so that two runs alike write the same."""


class DamagedError(Exception):
    """A checkpoint that must not be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found complete.

    Attributes:
        path: its folder.
        state: the `PARTS`.
        notes: what is of interest but decides nothing: seconds of training, terms of the loss counted.
    """

    path: Path
    state: dict[str, Any]
    notes: dict[str, float]


class Checkpoints:
    """The `checkpoints` folder of one run; one process at a time writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the checkpoints by name, newest first; none has been looked into."""
        if not self.folder.is_dir():
            return []
        steps = {path: match for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))}
        return sorted(steps, key=lambda path: int(steps[path][1]), reverse=True)

    def save(self, state: Mapping[str, Any], notes: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint, then remove all but it and the one before.

        Raises:
            OSError: if it cannot be written; what was there is intact and nothing half-written stays.
        """
        missing = [part for part in PARTS if part not in state]
        assert not missing, f"a state lacks {missing}"
        target = self.folder / f"step-{state['step']:08d}"
        self.clean_up()
        staging = self.folder / f".staging-{target.name}"
        try:
            staging.mkdir(parents=True)
            _write(staging, state, notes or {})
            if target.exists():  # damaged, or the run would have gone on from it
                self._discard(target)
            os.rename(staging, target)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.prune(target, drop_newer=True)
        return target

    def load(self, warn: Callable[[str], None]) -> Checkpoint:
        """Return the newest checkpoint that is complete.

        Args:
            warn: is told of each newer one that is not.

        Raises:
            ColakitError: if there is none, or a newer colakit wrote it.
        """
        found = self.paths()
        if not found:
            raise self.missing_error()
        for path, before in zip(found, [*found[1:], None], strict=True):
            try:
                return read_checkpoint(path)
            except DamagedError as damage:
                warn(f"{damage}" + (f"; going back to {before.name}" if before else ""))
        raise ColakitError(
            f"{self.folder}: no checkpoint is whole", hint="Start the run anew in another folder."
        )

    def missing_error(self) -> ColakitError:
        """Return the fault of a run that was to be resumed and has no checkpoint."""
        return ColakitError(
            f"{self.folder.parent}: nothing to resume (no checkpoint)",
            hint="Start the run without --resume, or with --resume auto.",
        )

    def prune(self, newest: Path, *, drop_newer: bool = False) -> None:
        """Remove all but `newest` and the one before.

        Args:
            drop_newer: also those of later steps, which were damaged when the run went back to before them.
        """
        found = self.paths()
        position = found.index(newest)
        newer = found[:position] if drop_newer else []
        for path in [*newer, *found[position + KEPT :]]:
            self._discard(path)

    def clean_up(self) -> None:
        """Remove what a process left that died while it wrote or removed a checkpoint."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                shutil.rmtree(path, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        """Take a checkpoint's name from it before its files go one by one."""
        going = self.folder / f".going-{path.name}"
        os.rename(path, going)
        shutil.rmtree(going, ignore_errors=True)


def _write(folder: Path, state: Mapping[str, Any], notes: Mapping[str, float]) -> None:
    write_tensors(folder / STATE, canonical(state))
    manifest = {
        "format": FORMAT,
        "colakit": __version__,
        "step": state["step"],
        **{name: notes[name] for name in NOTES if name in notes},
        "files": {STATE: {"bytes": (folder / STATE).stat().st_size, "sha256": sha256_of(folder / STATE)}},
    }
    write_text(folder / MANIFEST, _manifest_text(manifest))


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return the manifest as it must stand in its file, with a checksum over itself."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=2) + "\n"


def canonical(value: Any) -> Any:
    """Return an equal value that pickle writes in one way.

    Pickle writes an object once and then points to it, so its bytes tell which equal strings happen to be one
    object; those of a state that was loaded are not those of a state that was made.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() != tensor.nbytes  # torch would write all of its storage
        return tensor.clone() if is_view else tensor
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([canonical(item) for item in value])
    return value


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, of which every byte was compared with its manifest.

    Raises:
        DamagedError: if anything is missing or other than it was written.
        ColakitError: if a newer colakit wrote it.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        _check_file(path / name, expected)
    try:
        state = read_tensors(path / STATE)
    except Exception as error:  # the unpickler passes on whatever a foreign file makes it stumble over
        raise DamagedError(f"{path / STATE}: cannot be read ({first_line(error)})") from error
    missing = [part for part in PARTS if not isinstance(state, dict) or part not in state]
    if missing:
        raise DamagedError(f"{path / STATE}: lacks {', '.join(missing)}")
    if odd := [part for part, kind in PARTS.items() if not isinstance(state[part], kind)]:
        raise DamagedError(f"{path / STATE}: {odd[0]} is a {type(state[odd[0]]).__name__}")
    if not all(_has_generators(process) for process in state["per_process"]):
        raise DamagedError(f"{path / STATE}: lacks the random generators")
    max_micro_batch_size = state.get("max_micro_batch_size")
    if not (
        max_micro_batch_size is None or (type(max_micro_batch_size) is int and max_micro_batch_size >= 1)
    ):
        raise DamagedError(f"{path / STATE}: max_micro_batch_size is no size of micro-batches")
    if int(path.name.removeprefix("step-")) != state["step"]:
        raise DamagedError(f"{path / STATE}: is the state after step {state['step']}")
    return Checkpoint(path, state, {name: manifest[name] for name in NOTES if _is_number(manifest.get(name))})


def _has_generators(process: Any) -> bool:
    """Whether this is [generators, what else the process knows]."""
    is_pair = isinstance(process, (list, tuple)) and len(process) == 2
    return is_pair and isinstance(process[0], dict) and isinstance(process[0].get("cpu"), Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("it is too long for one")
        text = path.read_bytes().decode()
        manifest = json.loads(text)
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(manifest, dict) or _manifest_text(manifest) != text:
        raise DamagedError(f"{path}: is not as it was written (its own SHA-256 differs)")
    written = manifest.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise ColakitError(
            f"{folder}: format {written}; this colakit reads up to {FORMAT}", hint="Upgrade colakit."
        )
    files = manifest.get("files")
    if written != FORMAT or not isinstance(files, dict) or STATE not in files:
        raise DamagedError(f"{path}: is no manifest of format {FORMAT} that lists {STATE}")
    if strangers := [name for name in files if Path(name).name != name]:
        raise DamagedError(f"{path}: names files of other folders ({', '.join(strangers)})")
    if not all(isinstance(facts, dict) and facts.keys() >= {"bytes", "sha256"} for facts in files.values()):
        raise DamagedError(f"{path}: lacks the size or SHA-256 of a file")
    return manifest


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{path}: has {size} bytes; {expected['bytes']} were written")
        if sha256_of(path) != expected["sha256"]:
            raise DamagedError(f"{path}: is not as it was written (its SHA-256 differs)")
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:  # a NUL in its name is a ValueError
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error
