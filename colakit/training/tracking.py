"""Followers of metrics.jsonl: every record of a run also goes to TensorBoard, MLflow or Weights & Biases.

A follower changes nothing in the run folder but its own files, so a tracked run writes the same bytes as any
other. The name of a run in a store outside its folder is kept in `tracking.json`, for resuming.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from colakit.errors import ColakitError, first_line
from colakit.storage.run_folder import RunFolder
from colakit.utils.console import Reporter
from colakit.utils.documents import Document, read_document
from colakit.utils.extras import import_extra
from colakit.utils.files import write_json

PROJECT = "colakit"
MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.tracking", "wandb": "wandb"}
HINTS = {
    "mlflow": "MLFLOW_TRACKING_URI names a server, or a folder file:///… with MLFLOW_ALLOW_FILE_STORE=true.",
    "wandb": "WANDB_MODE=offline needs no account.",
}
STATE = "tracking.json"


class TrackedRuns(Document):
    """The content of `tracking.json`: identifier of the run, by store."""

    mlflow: str | None = None
    wandb: str | None = None


class Follower(Protocol):
    """Writes metrics to one store."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""

    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder; records after `step` are replaced."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class MLflow:
    """A run in the store of `MLFLOW_TRACKING_URI`, experiment `colakit`."""

    def __init__(self, folder: Path, run_id: str | None, parameters: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        if run_id is None:
            experiment = self.client.get_experiment_by_name(PROJECT)
            where = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
            run_id = self.client.create_run(where, run_name=folder.name).info.run_id
            for key, value in parameters.items():
                self.client.log_param(run_id, key, value)
        self.run_id: str = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run_id)


class WeightsAndBiases:
    """A run of the project `colakit`; `WANDB_MODE=offline` keeps it in the run folder."""

    def __init__(self, folder: Path, run_id: str | None, parameters: Mapping[str, Any]) -> None:
        self.run = import_extra(MODULES["wandb"], "track").init(
            project=PROJECT,
            name=folder.name,
            id=run_id,
            dir=str(folder),
            config=dict(parameters),
            resume="allow",
        )
        self.run_id: str = self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is buffered."""
        self.run.finish()


def require_packages(names: Sequence[str]) -> None:
    """Raise `ColakitError` unless the packages of all stores are installed."""
    for name in names:
        import_extra(MODULES[name], "track")


class Tracker:
    """All followers of one run.

    A follower that fails is named in a warning and left out: a training does not end with its store.
    """

    def __init__(self, followers: Mapping[str, Follower], reporter: Reporter) -> None:
        self.followers, self.reporter = dict(followers), reporter

    def log(self, record: Mapping[str, Any]) -> None:
        """Write a record of metrics.jsonl."""
        values = dict(_numbers(record))
        step = int(values.pop("step"))
        for name, follower in list(self.followers.items()):
            with self._warned(name):
                follower.log(step, values)

    def close(self) -> None:
        """End all followers."""
        for name, follower in list(self.followers.items()):
            with self._warned(name):
                follower.close()

    @contextlib.contextmanager
    def _warned(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a network, a full disk, a server
            self.followers.pop(name)
            self.reporter.warn(f"{name}: metrics are no longer written there ({error})")


def open_tracker(
    names: Sequence[str], folder: RunFolder, step: int, parameters: Mapping[str, Any], reporter: Reporter
) -> Tracker:
    """Return the followers of a run that starts or continues after `step`.

    Args:
        parameters: plain data that the stores show beside the metrics.

    Raises:
        ColakitError: if a store cannot be opened, or tracking.json is broken.
    """
    path = folder.path / STATE
    saved = read_document(path, TrackedRuns) if step and path.is_file() else TrackedRuns()
    ids = saved.model_dump(exclude_none=True)
    followers: dict[str, Follower] = {}
    for name in names:
        try:
            followers[name] = _open(name, folder.path, step, ids.get(name), parameters)
        except Exception as error:  # of a network, a server, a store that the package does not support
            raise ColakitError(
                f"--track {name}: the store cannot be opened ({first_line(error)})", hint=HINTS.get(name)
            ) from error
        if run_id := getattr(followers[name], "run_id", None):
            ids[name] = run_id
    if ids:
        write_json(path, ids)
    return Tracker(followers, reporter)


def _open(name: str, folder: Path, step: int, run_id: str | None, parameters: Mapping[str, Any]) -> Follower:
    match name:
        case "tensorboard":
            return TensorBoard(folder, step)
        case "mlflow":
            return MLflow(folder, run_id, parameters)
    return WeightsAndBiases(folder, run_id, parameters)


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record, named `val/mcc`; those of a single step `step/loss`."""
    event = "step/" if record.get("event") == "step" else ""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield (name if name == "step" else f"{event}{prefix}{name}"), float(value)
