"""A run folder: settings, environment, metrics, checkpoints and results.

settings.yaml      resolved settings with absolute paths; valid as --config
environment.json   versions, device, git commit, command line, working folder, origins of settings
metrics.jsonl      one JSON object per line, without times, so that equal runs write equal bytes
checkpoints/       the last two resumable states: weights, optimizer, RNG, position in the data
summary.json       results
predictions.json   label names; of each split: row numbers and hash of the sentences, labels, predictions,
                   probabilities
ckpt.pt, adapter/  the best model; a student also has student.safetensors
base/              a base in the transformers layout (pretrain, language models)
plots/             figures
run.lock           PID of the running process; deleted when it ends
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from colakit import __version__
from colakit.data.corpora import Split
from colakit.errors import EXIT_FAILED, EXIT_USAGE, ColakitError
from colakit.runtime.device import Compute
from colakit.storage.checkpoints import Checkpoints
from colakit.storage.run_schemas import (
    Environment,
    EvaluationRecord,
    MetricsFile,
    Predictions,
    StepRecord,
    Summary,
)
from colakit.utils.documents import Bounds, MissingError, parse_document, read_bounded, read_document
from colakit.utils.files import OUT_OF_ROOM, remove_temporary, sync_file, sync_folder, write_json, write_text
from colakit.utils.locks import Lock

S = TypeVar("S", bound=Summary)
Labels = NDArray[np.int64]  # (N,)

MAX_LINES, MAX_LINE_BYTES = 2**19, 2**16  # of metrics.jsonl
METRICS_BOUNDS = Bounds(2**24, 2**22, 2**22)
PREDICTIONS_BOUNDS = Bounds(2**26, 2**22)
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy", "pydantic")


class RunFolder:
    """The files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.lock = Lock(path / "run.lock")
        self.summary = path / "summary.json"
        self.predictions = path / "predictions.json"
        self.checkpoint = path / "ckpt.pt"
        self.adapter = path / "adapter"
        self.base = path / "base"
        self.plots = path / "plots"

    def create(self, settings_yaml: str, compute: Compute, origins: Mapping[str, str]) -> None:
        """Write settings and environment, replacing those of a run that has no checkpoint.

        Args:
            origins: dotted key -> flag, variable or file that set it; defaults are absent.

        Raises:
            ColakitError: if it cannot be written.
        """
        try:
            self.clean_up()
            self.metrics.unlink(missing_ok=True)
            write_text(self.settings, settings_yaml)
            write_json(self.environment, {**environment(compute), "origins": dict(origins)})
        except OSError as error:
            raise ColakitError(
                f"{error.filename or self.path}: {error.strerror}",
                hint="Choose another folder with --out.",
                exit_code=EXIT_FAILED if error.errno in OUT_OF_ROOM else EXIT_USAGE,
            ) from error

    def clean_up(self) -> None:
        """Remove temporary files left by a killed process."""
        self.checkpoints.clean_up()
        for folder in (self.path, self.adapter, self.base):
            remove_temporary(folder)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> tuple[list[StepRecord], list[EvaluationRecord]]:
        """Return the steps and the evaluations of a classifier in metrics.jsonl.

        An incomplete last line is ignored: a killed process may leave half of one.

        Raises:
            ColakitError: if there is no evaluation, or the file is broken.
        """
        hint = "Give the folder of a training run."
        raw = read_bounded(self.metrics, METRICS_BOUNDS.bytes, hint=hint)
        if raw.count(b"\n") > MAX_LINES or max(map(len, lines := raw.split(b"\n"))) > MAX_LINE_BYTES:
            raise ColakitError(
                f"{self.metrics}: has more than {MAX_LINES:,} lines, or {MAX_LINE_BYTES:,} bytes in a line",
                hint=hint,
            )
        raw = b"[" + b",\n".join(line for line in lines[:-1] if line) + b"]"
        records = parse_document(raw, MetricsFile, str(self.metrics), METRICS_BOUNDS, hint=hint).root
        evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
        if not evaluations:
            raise ColakitError(f"{self.metrics}: has no evaluation", hint=hint)
        return [record for record in records if isinstance(record, StepRecord)], evaluations

    def metrics_bytes(self) -> int:
        """Return the size of metrics.jsonl."""
        return self.metrics.stat().st_size if self.metrics.is_file() else 0

    def sync_metrics(self) -> None:
        """Sync metrics.jsonl to disk, before a checkpoint records its length."""
        if self.metrics.is_file():
            sync_file(self.metrics)
        sync_folder(self.path)

    def truncate_metrics(self, length: int) -> None:
        """Truncate metrics.jsonl to its length when a checkpoint was saved.

        Raises:
            ColakitError: if it is shorter than that.
        """
        if (size := self.metrics_bytes()) < length:
            raise ColakitError(
                f"{self.metrics}: has {size:,} bytes; the checkpoint was saved when it had {length:,}",
                hint="Restore the file, or start a new run in another folder.",
            )
        if self.metrics.is_file():
            os.truncate(self.metrics, length)

    def describe_checkpoint(self) -> str:
        """Return the path of the newest checkpoint, in words, for the error of an unfinished run."""
        paths = self.checkpoints.paths()
        return f"the last checkpoint is {paths[0]}" if paths else "no checkpoint was saved"

    def write_predictions(
        self,
        label_names: Sequence[str],
        splits: Mapping[str, tuple[Split, Labels, NDArray[np.float64]]],
    ) -> None:
        """Write the predictions of labelled splits.

        Args:
            splits: name -> sentences, (N,) predictions, (N, C) probabilities.
        """
        content = {
            name: {
                "sentences": (np.arange(len(split)) if split.rows is None else split.rows).tolist(),
                "sentences_sha256": split.sentences_sha256(),
                "labels": split.require_labels().tolist(),
                "predictions": predictions.tolist(),
                "probabilities": probs.round(6).tolist(),
            }
            for name, (split, predictions, probs) in splits.items()
        }
        write_json(self.predictions, {"label_names": list(label_names), "splits": content}, indent=None)

    def read_predictions(self) -> dict[str, tuple[Labels, Labels]]:
        """Return split name -> (labels, predictions).

        Raises:
            ColakitError: if the file is missing or broken.
        """
        splits = read_document(
            self.predictions,
            Predictions,
            PREDICTIONS_BOUNDS,
            hint="Pass a finished run.",
        ).splits
        return {
            name: (np.array(split.labels, np.int64), np.array(split.predictions, np.int64))
            for name, split in splits.items()
        }

    def read_environment(self) -> Environment:
        """Return the content of environment.json.

        Raises:
            ColakitError: if it is missing or broken.
        """
        return read_document(self.environment, Environment, hint="Pass a run folder.")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.summary, summary)

    def read_summary(self, model: type[S]) -> S:
        """Return the content of summary.json.

        Raises:
            ColakitError: if it is missing (not a run folder, or the run is not finished) or broken.
        """
        try:
            return read_document(self.summary, model)
        except MissingError:
            hint = "Finish it with --resume." if self.checkpoints.paths() else "Pass a run folder."
            raise ColakitError(f"{self.path}: is not a finished run (no summary.json)", hint=hint) from None


def environment(compute: Compute) -> dict[str, Any]:
    """Return the versions, device and git commit of this process, for environment.json."""
    return {
        "colakit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": str(compute.device),
        "dtype": compute.precision,
        "reason": compute.reason,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "command_line": sys.argv,
        "working_folder": str(Path.cwd()),
    }


def package_version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this code, with `+` for uncommitted changes; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # other checkout
        return None
    commit = git("rev-parse", "HEAD")
    return None if commit is None else commit + ("+" if git("status", "--porcelain", "-uno") else "")
