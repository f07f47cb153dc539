"""The Optuna study of a sweep, shared by all workers that run its trials.

An attempt is one Optuna trial. The trial of a worker that died is failed and added again with the same
values, as a further attempt. Its index, and with it its folder, stays the same.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colakit.config.sweep import SweepSettings
from colakit.errors import ColakitError, first_line
from colakit.sweeps.space import Dimension, make_pruner, make_sampler
from colakit.utils.extras import import_extra
from colakit.utils.locks import Lock

MISSED_HEARTBEATS = 4  # after so many, a worker counts as dead
RETRY_OF, WORKER, BEAT, ERROR = "retry_of", "worker", "heartbeat", "error"  # attributes of an Optuna trial


@dataclass(frozen=True)
class Worker:
    """The process that runs trials in `folder`; its lock is held while it lives."""

    folder: Path
    name: str

    @staticmethod
    @contextlib.contextmanager
    def registered(folder: Path) -> Iterator[Worker]:
        """Yield this process as a worker of the sweep in `folder`."""
        worker = Worker(folder.resolve(), f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
        (folder / "workers").mkdir(exist_ok=True)
        with worker.lock(worker.name).held():
            yield worker

    def lock(self, name: str) -> Lock:
        """Return the lock of a worker in this folder."""
        return Lock(self.folder / "workers" / f"{name}.lock")

    def as_dict(self) -> dict[str, str]:
        """Return the attribute of this worker's trials."""
        return {"name": self.name, "host": socket.gethostname(), "folder": str(self.folder)}

    def has_ended(self, other: dict[str, str]) -> bool | None:
        """Return whether another worker has ended; None if this machine cannot tell."""
        if (other["host"], other["folder"]) != (socket.gethostname(), str(self.folder)):
            return None
        return other["name"] != self.name and not is_held(self.lock(other["name"]))


def is_held(lock: Lock) -> bool:
    """Return whether a process holds a lock."""
    try:
        with lock.held():
            return False
    except ColakitError:
        return True


class SweepStudy:
    """The trials of a sweep in their storage.

    Args:
        storage: URL of a database, or path of an Optuna journal.
        name: of the study; workers of the same name share their trials.
        space: the settings to sample.
        num_trials: trials with a higher index are ignored.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        settings: SweepSettings,
        space: Sequence[Dimension],
        num_trials: int,
        worker: Worker,
    ) -> None:
        self.optuna = import_extra("optuna", "sweep")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.settings, self.space, self.num_trials, self.worker = settings, space, num_trials, worker
        self.seen: dict[tuple[int, Any], float] = {}  # (attempt, heartbeat) -> monotonic time
        self.beats = 0
        try:
            self.study = self.optuna.create_study(
                study_name=name,
                storage=_open_storage(storage),
                pruner=make_pruner(settings.pruner),
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # of a database driver
            shown = storage.rpartition("@")[2]  # without a password
            raise ColakitError(
                f"--storage {shown}: cannot be opened ({first_line(error)})",
                hint="Give a URL such as postgresql+psycopg://USER@HOST/NAME, or the path of a journal file.",
            ) from error

    def attempts(self) -> dict[int, Any]:
        """Return index -> the finished attempt of each trial, or its last one."""
        chosen: dict[int, Any] = {}
        for index, attempt in self._numbered():
            before = chosen.get(index)
            if index < self.num_trials and (before is None or not self.is_done(before)):
                chosen[index] = attempt
        return chosen

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield index and attempt of all attempts in the order in which they were added."""
        count = 0
        for attempt in self.study.get_trials(deepcopy=False):
            index = attempt.user_attrs.get(RETRY_OF)
            if index is None:
                index, count = count, count + 1
            yield index, attempt

    def is_done(self, attempt: Any) -> bool:
        """Return whether an attempt ended with a result or an error of its own."""
        return attempt.state.name in ("COMPLETE", "PRUNED") or ERROR in attempt.user_attrs

    def num_done(self) -> int:
        """Return the number of trials that ended."""
        return sum(map(self.is_done, self.attempts().values()))

    def ask(self) -> tuple[int, Any] | None:
        """Return index and Optuna trial of the next trial; None if all have ended or run."""
        self._repeat_abandoned()
        attempts = self.attempts()
        if len(attempts) >= self.num_trials and all(a.state.name != "WAITING" for a in attempts.values()):
            return None
        trial = self.study.ask()
        index = next(index for index, attempt in self._numbered() if attempt.number == trial.number)
        if index >= self.num_trials:  # another worker took the last one
            self._fail(trial.number)
            return None
        trial.set_user_attr(WORKER, self.worker.as_dict())
        self.study.sampler = make_sampler(
            self.settings.sampler, self.space, self.settings.sampler_seed, index
        )
        for dimension in self.space:
            dimension.suggest(trial)
        return index, trial

    def _repeat_abandoned(self) -> None:
        """Fail the running trials of dead workers, and add them again."""
        if not any(map(self._is_abandoned, self.attempts().values())):
            return
        with self.worker.lock("repeat").held(wait_seconds=60):
            for index, attempt in self.attempts().items():
                if not self._is_abandoned(attempt):
                    continue
                if attempt.state.name == "RUNNING" and not self._fail(attempt.number):
                    continue
                is_sampled = len(attempt.params) == len(self.space)
                self.study.add_trial(
                    self.optuna.create_trial(
                        state=self.optuna.trial.TrialState.WAITING,
                        params=attempt.params if is_sampled else {},
                        distributions=attempt.distributions if is_sampled else {},
                        user_attrs={RETRY_OF: index},
                    )
                )

    def _is_abandoned(self, attempt: Any) -> bool:
        """Return whether an attempt runs in no worker, or was failed by one that died before adding it again.

        The lock of a worker in this folder shows whether it lives. Of other workers, the heartbeat must not
        have changed for some time by the clock of this machine; clocks of two machines are not compared.
        """
        if attempt.state.name not in ("RUNNING", "FAIL") or self.is_done(attempt):
            return False
        worker = attempt.user_attrs.get(WORKER)
        if worker is not None and (ended := self.worker.has_ended(worker)) is not None:
            return ended
        since = self.seen.setdefault((attempt.number, attempt.user_attrs.get(BEAT)), time.monotonic())
        return time.monotonic() - since > MISSED_HEARTBEATS * self.settings.heartbeat_seconds

    def _fail(self, number: int) -> bool:
        """Mark a running attempt as failed; return False if another worker did so first."""
        try:
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)
        except (ValueError, self.optuna.exceptions.UpdateFinishedTrialError):
            return False
        return True

    def beat(self, trials: Sequence[Any]) -> None:
        """Record that this worker is alive in its running trials."""
        self.beats += 1
        for trial in trials:
            with self._given_away():
                trial.set_user_attr(BEAT, self.beats)

    def report(self, trial: Any, evaluation: int, value: float) -> bool:
        """Record the MCC of an evaluation of a running trial; return whether to prune the trial."""
        with self._given_away():
            trial.report(value, evaluation)
            return bool(trial.should_prune())
        return True

    def tell(self, trial: Any, *, value: float | None = None, error: str | None = None) -> None:
        """Record the end of a trial: its value, its error, or with neither that it was pruned."""
        states = self.optuna.trial.TrialState
        with self._given_away():
            if error is not None:
                trial.set_user_attr(ERROR, error)
                self.study.tell(trial, state=states.FAIL, skip_if_finished=True)
            elif value is not None:
                self.study.tell(trial, value, skip_if_finished=True)
            else:
                self.study.tell(trial, state=states.PRUNED, skip_if_finished=True)

    @contextlib.contextmanager
    def _given_away(self) -> Iterator[None]:
        """Ignore that a trial was failed by a worker that took this one for dead; its new attempt counts."""
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            yield

    def importance(self) -> dict[str, float]:
        """Return the importance (fANOVA) of each setting that varies; empty if trials do not differ."""
        values = {a.value for a in self.attempts().values() if a.state.name == "COMPLETE"}
        if len(values) < 2:
            return {}
        evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=0)
        importance = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: float(value) for key, value in importance.items()}


def _open_storage(storage: str) -> Any:
    if "://" in storage:
        return import_extra("optuna.storages", "sweep").RDBStorage(storage)
    journal = import_extra("optuna.storages.journal", "sweep")
    return import_extra("optuna.storages", "sweep").JournalStorage(journal.JournalFileBackend(storage))
