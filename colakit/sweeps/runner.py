"""Runs the trials of a sweep in child processes, several at a time, and prunes them by their metrics."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colakit.errors import EXIT_FAILED, EXIT_USAGE, ColakitError
from colakit.runtime.signals import StopRequest, stop_requests
from colakit.runtime.subprocesses import Child, Pool, Running
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import Summary
from colakit.sweeps.space import Choice, as_text, as_value
from colakit.sweeps.study import SweepStudy
from colakit.utils.console import Reporter
from colakit.utils.locks import Lock

LOOK_SECONDS = 1.0  # between two looks at the storage and at the metrics of running trials
SAVING_SECONDS = 120.0  # for the processes of a killed sweep to save and exit
MAX_FAILURES = 3  # trials in a row that fail before the sweep stops


@dataclass(frozen=True)
class TrialCommand:
    """The command line of a trial, and where its results are.

    Attributes:
        command: name of the training command.
        settings: YAML file that all trials share.
        words: further arguments.
        first_run: folder of the run whose metrics decide on pruning, within the trial's folder.
        objective: keys of the objective in summary.json.
    """

    command: str
    settings: Path
    words: tuple[str, ...]
    first_run: str
    objective: tuple[str, ...]

    def line(self, folder: Path, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the arguments after `colakit`."""
        sets = [word for key, value in as_values(params).items() for word in ("--set", f"{key}={value}")]
        shared = ("--config", str(self.settings), "--out", str(folder), "--resume", "auto", "--quiet")
        return (self.command, *shared, *sets, *self.words)

    def value(self, folder: Path) -> float | None:
        """Return the objective of a finished trial; None if it is not finished."""
        run = RunFolder(folder)
        if not run.summary.is_file():
            return None
        value: Any = run.read_summary(Summary).model_dump()
        for key in self.objective:
            value = value[key]
        return float(value)


def as_values(params: Mapping[str, Choice]) -> dict[str, str]:
    """Return the values of a trial as `--set` takes them."""
    return {key: as_value(value) for key, value in params.items()}


@dataclass
class _RunningTrial:
    index: int
    trial: Any
    process: Running
    reported: int = 0  # evaluations
    is_pruned: bool = False


@dataclass
class SweepRunner:
    """A worker of a sweep.

    Attributes:
        environments: one for each trial that runs at a time.
        folder: of the sweep.
        check: raises `ColakitError` if the values of a trial (as text) are not valid together.
    """

    study: SweepStudy
    command: TrialCommand
    environments: Sequence[Mapping[str, str]]
    folder: Path
    reporter: Reporter
    check: Callable[[dict[str, str]], object]
    running: dict[int, _RunningTrial] = field(default_factory=dict)
    failures: int = 0

    def run(self) -> None:
        """Run trials until all have ended, also those of other workers.

        Raises:
            ColakitError: after a signal, for invalid input, or if several trials in a row failed.
        """
        pool = Pool(self.environments, self._log)
        next_look = next_beat = 0.0
        is_over = False
        with stop_requests() as stop:
            try:
                while self.running or not (stop.signal or is_over):
                    if stop.signal is not None:
                        pool.send_signal(stop.signal)
                    elif time.monotonic() >= next_look:
                        while pool.idle and (asked := self.study.ask()) is not None:
                            self._start(pool, *asked)
                        self._follow()
                        is_over = not self.running and self.study.num_done() == self.study.num_trials
                        next_look = time.monotonic() + LOOK_SECONDS
                    if time.monotonic() >= next_beat:
                        self.study.beat([each.trial for each in self.running.values()])
                        next_beat = time.monotonic() + self.study.settings.heartbeat_seconds
                    if (ended := pool.poll()) is not None:
                        self._end(self.running.pop(ended.index), stop)
                        next_look = 0.0
            finally:
                pool.close()
        if stop.signal is not None:
            raise ColakitError("by a signal", exit_code=stop.exit_code)

    def trial_folder(self, index: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / "trials" / f"{index:04d}"

    def _start(self, pool: Pool, index: int, trial: Any) -> None:
        """Start or continue a trial; one whose run is finished only lacked its record."""
        folder = self.trial_folder(index)
        for path in folder.rglob("run.lock"):  # a process of a killed sweep may still save
            with Lock(path).held(SAVING_SECONDS, lambda pid: self.reporter.say(f"waiting for process {pid}")):
                pass
        if (value := self.command.value(folder)) is not None:
            self._complete(index, trial, value)
            return
        try:
            self.check(as_values(trial.params))
        except ColakitError as error:
            self.study.tell(trial, error=error.message)
            self.reporter.warn(f"trial {index}: {error.message}; {self.progress()}")
            return
        shown = ", ".join(f"{key}={as_text(value)}" for key, value in trial.params.items())
        self.reporter.say(f"trial {index}: {shown}")
        child = Child(f"trial {index}", self.command.line(folder, trial.params))
        self.running[index] = _RunningTrial(index, trial, pool.start(index, child))

    def _follow(self) -> None:
        """Report new evaluations of running trials, and stop those that the pruner refuses."""
        for each in self.running.values():
            try:
                run = RunFolder(self.trial_folder(each.index) / self.command.first_run)
                _, evaluations = run.read_metrics()
            except ColakitError:  # no evaluation yet
                continue
            for number in range(each.reported + 1, len(evaluations) + 1):
                mcc = evaluations[number - 1].val.mcc
                each.is_pruned |= self.study.report(each.trial, number, mcc)
            each.reported = max(each.reported, len(evaluations))
            if each.is_pruned:
                each.process.send_signal(signal.SIGTERM)

    def _end(self, ended: _RunningTrial, stop: StopRequest) -> None:
        index, code = ended.index, ended.process.process.returncode
        if code == 0:
            value = self.command.value(self.trial_folder(index))
            assert value is not None
            self._complete(index, ended.trial, value)
        elif ended.is_pruned:
            self.failures = 0
            self.study.tell(ended.trial)
            self.reporter.say(f"trial {index}: pruned after {ended.reported} evaluations; {self.progress()}")
        elif not ended.process.was_stopped(stop):
            error = ended.process.failure()
            if error.exit_code == EXIT_USAGE:  # data, base or teacher; the trial remains to be run
                raise error
            self.study.tell(ended.trial, error=error.message)
            self.reporter.warn(f"{error.message}; {self.progress()}")
            self.failures += 1
            if self.failures >= MAX_FAILURES:
                raise ColakitError(
                    f"{MAX_FAILURES} trials in a row failed; the last: {error.message}",
                    hint=error.hint,
                    exit_code=EXIT_FAILED,
                )

    def _complete(self, index: int, trial: Any, value: float) -> None:
        self.failures = 0
        self.study.tell(trial, value=value)
        self.reporter.say(f"trial {index}: MCC {value:.3f}; {self.progress()}")

    def progress(self) -> str:
        """Return how many trials ended, in words."""
        return f"{self.study.num_done()} of {self.study.num_trials} trials ended"

    def _log(self, name: str, line: str) -> None:
        if line.startswith("warning: "):
            self.reporter.warn(f"{name}: {line.removeprefix('warning: ')}")
