"""A run folder: settings, environment, metrics, resumable state and the result.

settings.yaml      resolved settings; feeds back into --config
environment.json   versions, device, git commit
metrics.jsonl      a JSON object a line, no times in it: two runs alike write the same bytes
checkpoints/       all it takes to continue: weights, optimizer, randomness, place in the data, twice
summary.json       the result
ckpt.pt, adapter/  the best model
base/              a base in the transformers layout (pretrain, a language model)
plots/             figures
run.lock           while it runs: the number of its process
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colakit import __version__
from colakit.errors import EXIT_FAILED, EXIT_USAGE, ColakitError, first_line
from colakit.evaluation.metrics import Labels
from colakit.runtime.device import Compute
from colakit.storage.checkpoints import Checkpoints
from colakit.utils.files import OUT_OF_ROOM, remove_temporary, sync_file, sync_folder, write_json, write_text
from colakit.utils.locks import Lock

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy", "pydantic")


class RunFolder:
    """The files of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.lock = Lock(path / "run.lock")
        self.summary = path / "summary.json"
        self.predictions = path / "predictions.json"
        self.checkpoint = path / "ckpt.pt"
        self.adapter = path / "adapter"
        self.base = path / "base"
        self.plots = path / "plots"

    def create(self, settings_yaml: str, compute: Compute) -> None:
        """Write what is known before training into the folder, over what a run left that got no further.

        Raises:
            ColakitError: if it cannot be written.
        """
        try:
            self.tidy()
            self.metrics.unlink(missing_ok=True)
            write_text(self.settings, settings_yaml)
            write_json(self.path / "environment.json", environment(compute))
        except OSError as error:
            raise ColakitError(
                f"{error.filename or self.path}: {error.strerror}",
                hint="Choose another folder with --out.",
                exit_code=EXIT_FAILED if error.errno in OUT_OF_ROOM else EXIT_USAGE,
            ) from error

    def tidy(self) -> None:
        """Remove what a process left that died while it wrote."""
        self.checkpoints.tidy()
        for folder in (self.path, self.adapter, self.base):
            remove_temporary(folder)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl; a torn last line is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def metrics_bytes(self) -> int:
        """Return the length of metrics.jsonl."""
        return self.metrics.stat().st_size if self.metrics.is_file() else 0

    def sync_metrics(self) -> None:
        """Make metrics.jsonl outlast a power cut, before a checkpoint records its length."""
        if self.metrics.is_file():
            sync_file(self.metrics)
        sync_folder(self.path)

    def truncate_metrics(self, length: int) -> None:
        """Cut metrics.jsonl to what had been written when a checkpoint was saved.

        Raises:
            ColakitError: if it is shorter than that.
        """
        if (found := self.metrics_bytes()) < length:
            raise ColakitError(
                f"{self.metrics}: has {found:,} bytes; the checkpoint was saved when it had {length:,}",
                hint="Put the file back as it was, or start the run anew in another folder.",
            )
        if self.metrics.is_file():
            os.truncate(self.metrics, length)

    def standing(self) -> str:
        """Return where the good state lies, for the last line of a run that did not finish."""
        found = self.checkpoints.found()
        return f"{found[0]} holds everything up to its step" if found else "there is no checkpoint yet"

    def write_companion(self, companion: dict[str, Any]) -> None:
        """Write, beside PEFT's files, what a classifier needs that PEFT has no place for."""
        write_json(self.adapter / "colakit.json", companion)

    def write_predictions(self, found: Mapping[str, tuple[Labels, Labels]]) -> None:
        """Write split name -> (labels, predictions), both (N,)."""
        write_json(
            self.predictions,
            {name: {"labels": a.tolist(), "predictions": b.tolist()} for name, (a, b) in found.items()},
            indent=None,
        )

    def read_predictions(self) -> dict[str, tuple[Labels, Labels]]:
        """Return split name -> (labels, predictions).

        Raises:
            ColakitError: if the file is missing or broken.
        """
        try:
            raw = json.loads(self.predictions.read_text(encoding="utf-8"))
            return {
                name: (
                    np.array(part["labels"], dtype=np.int64),
                    np.array(part["predictions"], dtype=np.int64),
                )
                for name, part in raw.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ColakitError(
                f"{self.predictions}: cannot be read ({first_line(error)})", hint="Give a finished run."
            ) from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any]:
        """Return the result.

        Raises:
            ColakitError: if the folder is no run, or the run is not finished.
        """
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = "Finish it with --resume." if self.checkpoints.found() else "Give a run folder."
            raise ColakitError(f"{self.path}: holds no finished run (no summary.json)", hint=hint) from None
        except (OSError, ValueError) as error:
            raise ColakitError(f"{self.summary}: cannot be read ({error})") from error


def environment(compute: Compute) -> dict[str, Any]:
    """Return versions, machine and code that a run depends on."""
    return {
        "colakit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": str(compute.device),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "reason": compute.reason,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "command_line": sys.argv,
    }


def package_version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this code, with `+` where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # in somebody else's checkout
        return None
    commit = git("rev-parse", "HEAD")
    return None if commit is None else commit + ("+" if git("status", "--porcelain", "-uno") else "")
