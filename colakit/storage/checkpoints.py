"""Checkpoints of a training run: the last two resumable states, each written atomically.

checkpoints/
  step-00000120/   state.pt, and manifest.json with the size and SHA-256 of every file
  step-00000140/
  .staging-…       a checkpoint that is being written

A state is written to a staging folder, manifest last. Every file and the folder are synced, then one rename
creates the checkpoint. So the newest step folder is complete whenever a run is killed. The manifest detects
later damage; loading then falls back to the checkpoint before.
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
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
)
from torch import Tensor

from colakit import __version__
from colakit.errors import ColakitError, first_line
from colakit.storage.tensors import read_tensors, write_tensors
from colakit.utils.documents import (
    Bounds,
    Document,
    DocumentError,
    MissingError,
    check_json_bounds,
    parse_document,
    read_bounded,
    validate,
)
from colakit.utils.files import sha256_of, sync_folder, write_text

FORMAT = 1
NUM_KEPT = 2
MAX_MANIFEST_BYTES = 2**20
STATE, MANIFEST = "state.pt", "manifest.json"
NAME = re.compile(r"step-(\d{8,})")
NOTES = ("seconds", "counted", "peak_memory_mib")  # in the manifest: equal runs must write equal states


Names = dict[str, Any]
Tensors = dict[str, Tensor]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class StateModel(BaseModel):
    """A part of a state, of tensors and plain data."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, extra="forbid")


class BestEvaluation(StateModel, extra="allow"):
    """Validation metrics of the best evaluation."""

    loss: float
    step: Count
    epoch: Annotated[float, Field(ge=0)]
    accuracy: float = 0.0
    mcc: float = 0.0


class ProgressState(StateModel):
    """State of a run besides weights and optimizer."""

    max_steps: Annotated[int, Field(ge=1, lt=2**53)]
    loss_sum: float
    count: Count
    best: Annotated[Names, AfterValidator(lambda best: BestEvaluation.model_validate(best) and best)] | None
    best_tensors: Tensors
    stale: Count
    ema: Tensors


class State(StateModel):
    """The state after a step, of all processes."""

    identity: Names
    step: Count
    progress: Annotated[Names, AfterValidator(lambda state: ProgressState.model_validate(state) and state)]
    tensors: Tensors
    optimizer: Names
    per_process: Annotated[list[Any], Field(min_length=1, max_length=2**16)]
    metrics_bytes: Count
    max_micro_batch_size: Annotated[int, Field(ge=1)] | None
    graphs_failed: bool

    @field_validator("per_process")
    @classmethod
    def _has_generators(cls, processes: list[Any]) -> list[Any]:
        """Each process has a pair of generator states and its own state."""
        for process in processes:
            is_pair = isinstance(process, (list, tuple)) and len(process) == 2
            if not (is_pair and isinstance(process[0], dict) and isinstance(process[0].get("cpu"), Tensor)):
                raise ValueError("lacks the random generators")
        return processes


PARTS = tuple(State.model_fields)


class FileRecord(Document):
    """Size and checksum of a file."""

    bytes: Count
    sha256: str


class Manifest(Document):
    """manifest.json of a checkpoint."""

    format: int
    files: Annotated[dict[str, FileRecord], Field(max_length=64)]
    seconds: Annotated[FiniteFloat, Field(ge=0)] | None = None
    counted: Annotated[float, Field(ge=0, lt=2**53)] | None = None
    peak_memory_mib: Annotated[float, Field(ge=0, lt=2**53)] | None = None

    @field_validator("files")
    @classmethod
    def _are_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        if STATE not in files or any(Path(name).name != name for name in files):
            raise ValueError(f"must list {STATE} and only files of its folder")
        return files


class DamagedError(Exception):
    """A damaged checkpoint; the message names the file and the fault."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        state: the `PARTS`.
        notes: `NOTES` for reports: seconds of training, terms of the loss counted, peak memory.
    """

    path: Path
    state: dict[str, Any]
    notes: dict[str, float]


class Checkpoints:
    """The `checkpoints` folder of one run; one process at a time writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the checkpoint folders, newest step first, without verifying them."""
        if not self.folder.is_dir():
            return []
        steps = {path: match for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))}
        return sorted(steps, key=lambda path: int(steps[path][1]), reverse=True)

    def save(self, state: Mapping[str, Any], notes: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint, then remove all but it and the one before.

        Raises:
            OSError: if it cannot be written; earlier checkpoints stay intact and no partial one is left.
        """
        missing = [part for part in PARTS if part not in state]
        assert not missing, f"a state lacks {missing}"
        target = self.folder / f"step-{state['step']:08d}"
        self.clean_up()
        staging = self.folder / f".staging-{target.name}"
        try:
            staging.mkdir(parents=True)
            _write(staging, state, notes or {})
            if target.exists():  # damaged, otherwise the run would have resumed from it
                self._remove(target)
            os.rename(staging, target)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.prune(target, drop_newer=True)
        return target

    def load(self, warn: Callable[[str], None]) -> Checkpoint:
        """Return the newest undamaged checkpoint.

        Args:
            warn: called with a message for each damaged one that is skipped.

        Raises:
            ColakitError: if there is none, or a newer colakit wrote it.
        """
        paths = self.paths()
        if not paths:
            raise self.missing_error()
        for path, before in zip(paths, [*paths[1:], None], strict=True):
            try:
                return read_checkpoint(path)
            except DamagedError as damage:
                warn(f"{damage}" + (f"; going back to {before.name}" if before else ""))
        raise ColakitError(
            f"{self.folder}: every checkpoint is damaged", hint="Start a new run in another folder."
        )

    def missing_error(self) -> ColakitError:
        """Return the error of resuming a run without a checkpoint."""
        return ColakitError(
            f"{self.folder.parent}: nothing to resume (no checkpoint)",
            hint="Start the run without --resume, or with --resume auto.",
        )

    def prune(self, newest: Path, *, drop_newer: bool = False) -> None:
        """Remove all checkpoints older than `newest` but one.

        Args:
            drop_newer: remove later steps too; the run resumed from `newest` because they were damaged.
        """
        paths = self.paths()
        index = paths.index(newest)
        for path in [*(paths[:index] if drop_newer else []), *paths[index + NUM_KEPT :]]:
            self._remove(path)

    def clean_up(self) -> None:
        """Remove partial checkpoints left by a killed process."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Rename a checkpoint before its files are deleted one by one, so that no partial one is visible."""
        hidden = self.folder / f".removed-{path.name}"
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _write(folder: Path, state: Mapping[str, Any], notes: Mapping[str, float]) -> None:
    path = folder / STATE
    write_tensors(path, canonical(state))
    manifest = {
        "format": FORMAT,
        "colakit": __version__,
        "step": state["step"],
        **{name: notes[name] for name in NOTES if name in notes},
        "files": {STATE: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}},
    }
    write_text(folder / MANIFEST, _manifest_text(manifest))


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return the exact text of a manifest file, including a checksum over its other entries."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=2) + "\n"


def canonical(value: Any) -> Any:
    """Return an equal value whose pickle is byte-identical for equal states.

    Pickle stores a repeated object once, so its bytes depend on which equal strings are one object, and that
    differs between a loaded and a fresh state. Strings are interned and tensor views copied.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() != tensor.nbytes  # torch would save the whole storage
        return tensor.clone() if is_view else tensor
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([canonical(item) for item in value])
    return value


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint after verifying every file against the manifest.

    Raises:
        DamagedError: if a file is missing or differs from what was written.
        ColakitError: if a newer colakit wrote it.
    """
    manifest = _read_manifest(path / MANIFEST)
    for name, expected in manifest.files.items():
        _check_file(path / name, expected)
    try:
        state = dict(validate(read_tensors(path / STATE), State))
    except ValueError as error:
        raise DamagedError(f"{path / STATE}: {error}") from None
    except DocumentError as error:
        raise DamagedError(error.message) from error
    if int(path.name.removeprefix("step-")) != state["step"]:
        raise DamagedError(f"{path / STATE}: is the state after step {state['step']}")
    return Checkpoint(path, state, manifest.model_dump(include=set(NOTES), exclude_none=True))


def _read_manifest(path: Path) -> Manifest:
    try:
        raw = read_bounded(path, MAX_MANIFEST_BYTES)
        check_json_bounds(raw, Bounds(MAX_MANIFEST_BYTES))
        content = json.loads(raw)
        if not isinstance(content, dict) or _manifest_text(content).encode() != raw:
            raise DamagedError(f"{path}: has changed since it was written (own SHA-256 differs)")
        if isinstance(version := content.get("format"), int) and version > FORMAT:
            raise ColakitError(
                f"{path.parent}: format {version}; this colakit reads up to {FORMAT}", hint="Upgrade colakit."
            )
        manifest = parse_document(raw, Manifest, str(path))
    except MissingError:
        raise DamagedError(f"{path}: is missing") from None
    except DocumentError as error:
        raise DamagedError(error.message) from None
    except ValueError as error:
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error
    if manifest.format != FORMAT:
        raise DamagedError(f"{path}: must have format {FORMAT}")
    return manifest


def _check_file(path: Path, expected: FileRecord) -> None:
    try:
        if not path.is_file():
            raise DamagedError(f"{path}: is missing")
        size = path.stat().st_size
        if size != expected.bytes:
            raise DamagedError(f"{path}: has {size} bytes, not the {expected.bytes} that were written")
        if sha256_of(path) != expected.sha256:
            raise DamagedError(f"{path}: has changed since it was written (SHA-256 differs)")
    except (OSError, ValueError) as error:  # ValueError: NUL in a file name
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error
