"""Runs of one command that differ in their seed or fold, trained side by side (`--seeds`, `--folds`).

Each run is a colakit process of its own, started or resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from colakit.api.session import Session
from colakit.config.paths import absolute_path
from colakit.config.resolve import resolve, without_settings
from colakit.config.settings import Settings
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.evaluation.experiments import SECTIONS
from colakit.inference.classifier import read_origin
from colakit.runtime.cpu import available_cpus
from colakit.runtime.subprocesses import Child, run_side_by_side
from colakit.storage.gpt2 import base_fingerprint, load_gpt
from colakit.storage.output import Resume, check_writable, claim_run_folder
from colakit.storage.run_schemas import Summary
from colakit.storage.run_set import Kind, RunSet, check_seeds, open_run_set
from colakit.training.classifier_trainer import MAY_CHANGE
from colakit.training.job import differences, settings_identity
from colakit.training.run import is_resuming

Environment = Mapping[str, str]


def chosen_runs(
    session: Session, resume: Resume, *, folds: int | None = None, seeds: Sequence[int] | None = None
) -> tuple[Kind, tuple[int, ...]] | None:
    """Return the kind of runs to train, and their seeds or folds; None for a single run.

    A resumed command without `folds` and `seeds` takes them from its folder.

    Raises:
        ColakitError: if they are not valid, cannot be combined, or the folder has runs of another command.
    """
    if folds is not None and seeds is not None:
        raise ColakitError("--folds with --seeds: cannot be combined", hint="Remove one of them.")
    if seeds is not None and session.resolved.was_typed("seed"):
        raise ColakitError("--seed with --seeds: --seeds sets the seed of each run", hint="Remove --seed.")
    if folds is not None:
        return "folds", tuple(range(1, folds + 1))
    if seeds is not None:
        try:
            return "seeds", check_seeds(seeds)
        except ValueError as error:
            raise ColakitError(f"--seeds: {error}", hint="For example --seeds 0,1,2.") from error
    saved = _saved_runs(session, resume)
    return None if saved is None else (saved.kind, saved.values)


def _saved_runs(session: Session, resume: Resume) -> RunSet | None:
    """Return the folder of runs that the command continues, if it continues one."""
    if resume is Resume.NEVER or session.out is None:
        return None
    runs = open_run_set(session.out)
    if runs is not None and runs.command != session.command:
        raise ColakitError(
            f"--out {session.out}: holds runs of {runs.command} (got {session.command})",
            hint="Choose another folder.",
        )
    return runs


def plan_run_set(
    session: Session, kind: Kind, values: Sequence[int], *, resume: Resume
) -> tuple[RunSet, RunSet | None]:
    """Return the runs to train, whose path is `session.out` or the current folder, and those it holds.

    Raises:
        ColakitError: if runs cannot start in `session.out`, or the runs in it were started differently.
    """
    runs = RunSet(session.out or Path(), session.command, kind, tuple(values))
    if "RANK" in os.environ:
        raise ColakitError(
            f"--{kind} under torchrun: it starts processes itself", hint="Run colakit directly."
        )
    saved = _saved_runs(session, resume)
    if saved is None:
        if is_resuming(session.out, resume):
            raise ColakitError(
                f"--out {session.out}: holds a single run, not {kind}",
                hint=f"Choose another folder, or remove --{kind}.",
            )
        return runs, None
    check_writable(saved.path)
    can_grow = kind == "seeds" and set(saved.values) <= set(runs.values)
    if kind != saved.kind or (runs.values != saved.values and not can_grow):
        raise ColakitError(
            f"{runs.flag()}: {saved.path} was started with {saved.flag()}",
            hint=f"Continue: {saved.resume_command()}",
        )
    if differing := _differences(session, saved, runs):
        raise ColakitError(
            f"{saved.path}: the {kind} were started differently: {differing}",
            hint=f"Continue: {saved.resume_command()}",
        )
    return runs, saved


def _differences(session: Session, saved: RunSet, runs: RunSet) -> str:
    """Return how the settings, base and data differ from those of `saved`; data and bases by content."""
    settings = resolve(config=saved.shared.settings, environment={}).settings
    bases = [absolute_path(each.base) for each in (settings, session.settings)]
    if bases[0] != bases[1] and all(Path(base).is_dir() for base in bases):
        bases = [base_fingerprint(load_gpt(Path(base))) for base in bases]
    before, now = (
        {**_identity(each, runs), "base": base}
        for each, base in zip((settings, session.settings), bases, strict=True)
    )
    if differing := differences(before, now):
        return differing
    finished = [saved.run(value) for value in saved.values if value not in saved.unfinished()]
    data = session.load_corpus().fingerprints() if finished else {}
    origins = [read_origin(run.adapter if run.adapter.is_dir() else run.path) for run in finished]
    return next(filter(None, (differences(origin.get("data") or {}, data) for origin in origins)), "")


def _identity(settings: Settings, runs: RunSet) -> dict[str, Any]:
    """Return the settings that must be equal in all runs, without paths."""
    sections = {
        name: getattr(settings, name).model_dump(
            mode="json", exclude=MAY_CHANGE | {"path", "splits", "mirrors"}
        )
        for name in SECTIONS[runs.command]
    }
    own: dict[str, Any] = {"precision": settings.precision}
    if runs.kind == "folds":
        own["seed"] = str(settings.seed)
    return {**own, **settings_identity(**sections)}


def train_run_set(
    session: Session,
    runs: RunSet,
    saved: RunSet | None,
    *,
    resume: Resume,
    report: Callable[[RunSet], dict[str, Any]],
    words: Callable[[int], Sequence[str]] = lambda value: (),
    training: Callable[[int], AbstractContextManager[None]] = lambda num_missing: nullcontext(),
) -> dict[str, Any]:
    """Train the unfinished runs and return the summary of all.

    Args:
        runs, saved: of `plan_run_set`.
        report: writes and prints the summary of finished runs, and returns it.
        words: further arguments of the command of a run.
        training: returns a context for the training of so many unfinished runs.
    """
    session.out = claim_run_folder(session.command, session.out)
    runs = RunSet(session.out, runs.command, runs.kind, runs.values)
    with runs.shared.lock.held():
        if saved is None or _saved_runs(session, resume) != saved:  # others may have started or extended them
            runs, _ = plan_run_set(session, runs.kind, runs.values, resume=resume)
        missing = runs.unfinished()
        if not missing and runs.shared.summary.is_file():
            session.reporter.say(f"{runs.path} is finished; nothing to resume")
            finished = runs.shared.read_summary(Summary).model_dump(exclude_unset=True)
            return {**finished, "run": str(runs.path)}
        runs.create(session.settings_yaml)

        def progress() -> str:
            finished = len(runs.values) - len(runs.unfinished())
            return f"{finished} of {len(runs.values)} {runs.kind} are finished"

        with continue_with(runs.resume_command(), progress), training(len(missing)):
            _train(session, runs, missing, words)
        return {**report(runs), "run": str(runs.path)}


@contextmanager
def continue_with(command: str, progress: Callable[[], str]) -> Iterator[None]:
    """Add the progress to errors, and how to continue as their hint."""
    try:
        yield
    except (ColakitError, KeyboardInterrupt) as error:
        message, hint = "at once", ""
        if isinstance(error, ColakitError):
            message, hint = error.message, (error.hint or "").partition("Continue: ")[0]
        raise ColakitError(
            f"{message}; {progress()}",
            hint=f"{hint} Continue: {command}".strip(),
            exit_code=getattr(error, "exit_code", EXIT_INTERRUPTED),
        ) from None


def workers(session: Session, count: int) -> list[Environment]:
    """Return the environment of each process that runs side by side.

    Settings are passed in a file, so variables that set them are removed.
    """
    environment = without_settings(os.environ)
    if session.compute.device.type != "cpu":
        return [environment]
    cores = available_cpus()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else max(1, cores // count)
    return [{**environment, "OMP_NUM_THREADS": str(threads)}] * min(count, max(1, cores // threads))


@contextmanager
def threads_of(environment: Environment) -> Iterator[None]:
    """Let torch use as many threads as in a process with this environment, to measure its speed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", threads)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def describe_workers(workers: Sequence[Environment]) -> str:
    """Return how many processes run at a time, in words."""
    threads = workers[0].get("OMP_NUM_THREADS")
    each = f", {threads} thread{'s' * (threads != '1')} each" if threads else ""
    return f"{len(workers)} side by side{each}" if len(workers) > 1 else f"one after the other{each}"


def _train(
    session: Session, runs: RunSet, missing: Sequence[int], words: Callable[[int], Sequence[str]]
) -> None:
    reporter = session.reporter

    def show(name: str, line: str) -> None:
        if line.startswith("warning: "):
            reporter.warn(f"{name}: {line.removeprefix('warning: ')}")
        elif not line.startswith("note: "):  # notes on the corpus were printed by this process
            reporter.say(f"{name}: {line}")

    environments = workers(session, len(runs.values))
    if missing:
        count = f"{len(missing)} of {len(runs.values)} {runs.kind}"
        reporter.say(f"{count} to train, {describe_workers(environments)}")
    children = []
    for value in missing:
        run = runs.run(value).path
        command = [runs.command, "--config", str(runs.shared.settings), "--out", str(run)]
        command += ["--resume", "auto", "--set", runs.assignment(value), *words(value)]
        children.append(Child(run.name, (*command, *(["--quiet"] if reporter.quiet else []))))
    run_side_by_side(children, environments, show)
