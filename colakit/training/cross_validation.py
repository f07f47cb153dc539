"""`colakit finetune --folds K`: K runs, each without one fold of train, and what they say of the folds.

Every run is a `colakit finetune` in a process of its own, resumed or begun; `out_of_fold` reports them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from colakit.api.session import Resume, Session
from colakit.config.resolve import resolve, without_settings
from colakit.config.settings import Settings
from colakit.config.yaml import to_yaml
from colakit.data.splits import left_out
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.evaluation.out_of_fold import report
from colakit.runtime.cpu import available_cpus
from colakit.runtime.subprocesses import Child, run_side_by_side
from colakit.storage.folds import FoldsFolder, open_folds
from colakit.training.classifier_trainer import FREE_TO_CHANGE
from colakit.training.task_data import TaskData, load_task, show_plan
from colakit.training.trainer import differences, settings_identity

Plan = Callable[[Session, TaskData], nn.Module]


def run(session: Session, count: int, plan: Plan, *, resume: Resume) -> dict[str, Any]:
    """Train what is missing of `count` runs and report them; return the summary, or a dry run's plan.

    Args:
        plan: returns the model without its weights.
    """
    _refuse(session)
    _check_out(session, count, resume)
    task = load_task(session)
    model = plan(session, task)  # and with it what can be wrong with the base or the adapter
    sizes = _sizes(task, count)
    workers = _workers(session, count)
    if session.dry_run:
        return _show_plan(session, task, model, sizes, workers)
    session.out = session.claim_run_folder()
    folds = FoldsFolder(session.out, count)
    with folds.shared.lock.held():
        _check_out(session, count, resume)  # another process may have been here before
        missing = folds.unfinished()
        if not missing and folds.shared.summary.is_file():
            session.reporter.say(f"{folds.path} is finished; nothing to resume")
            return {**folds.shared.read_summary(), "run": str(folds.path)}
        folds.create(to_yaml(session.settings))
        with _honest_ending(folds):
            _train(session, folds, missing, workers)
        return {**report(session, task, folds), "run": str(folds.path)}


def _refuse(session: Session) -> None:
    settings = session.settings.finetune
    if settings.leave_out is not None:
        raise ColakitError(
            f"--folds with finetune.leave_out={settings.leave_out}: each fold is left out by one of the runs",
            hint="Leave one of them out.",
        )
    if settings.objective != "classification":
        raise ColakitError(
            f"--folds with finetune.objective={settings.objective}: folds are for classification",
            hint="Leave --folds out.",
        )
    if "RANK" in os.environ:
        raise ColakitError("--folds under torchrun: it starts processes itself", hint="Run colakit itself.")


def _check_out(session: Session, count: int, resume: Resume) -> None:
    """Raise `ColakitError` unless runs can begin in `--out`, or those there go on as they began."""
    begun = open_folds(session.out) if session.out is not None and resume is not Resume.NEVER else None
    if begun is None:
        if session.is_resuming(resume):
            raise ColakitError(
                f"--out {session.out}: holds a run of its own, not one for each fold",
                hint="Name another folder, or leave --folds out.",
            )
        return
    session.check_out()
    if begun.count != count:
        raise ColakitError(
            f"--folds {count}: {begun.path} holds {begun.count} folds", hint=begun.resume_hint()
        )
    saved = resolve(config=begun.shared.settings, environment={}).settings
    if differing := differences(_identity(saved), _identity(session.settings)):
        raise ColakitError(
            f"{begun.path}: the folds were started differently: {differing}", hint=begun.resume_hint()
        )


def _identity(settings: Settings) -> dict[str, Any]:
    """Return the settings in which runs of one experiment agree."""
    free = FREE_TO_CHANGE | {"mirrors"}
    sections = settings_identity(settings, ("data", "lora", "finetune"), free)
    return {"seed": settings.seed, "base": settings.base, "precision": settings.precision, **sections}


def _sizes(task: TaskData, count: int) -> dict[str, int]:
    """Return for each fold, written i/k, how many sentences of train are in it."""
    folds = [f"{number}/{count}" for number in range(1, count + 1)]
    sizes = {fold: int(left_out(task.train.sentences, fold).sum()) for fold in folds}
    if empty := [fold for fold, size in sizes.items() if not size]:
        raise ColakitError(
            f"--folds {count}: no sentence of train falls into fold {empty[0]} ({len(task.train)} sentences)",
            hint="Ask for fewer folds.",
        )
    return sizes


def _workers(session: Session, count: int) -> list[dict[str, str]]:
    """Return the environment of each process that is to run beside the others.

    The settings come from a file, so that what set them in this process must not set them again.
    """
    environment = without_settings(os.environ)
    if session.compute.device.type != "cpu":
        return [environment]
    cores = available_cpus()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else max(1, cores // count)
    at_once = min(count, max(1, cores // threads))
    return [{**environment, "OMP_NUM_THREADS": str(threads)}] * at_once


def _show_plan(
    session: Session,
    task: TaskData,
    model: nn.Module,
    sizes: Mapping[str, int],
    workers: list[dict[str, str]],
) -> dict[str, Any]:
    rows = [[fold, str(len(task.train) - size), str(size)] for fold, size in sizes.items()]
    session.reporter.table("Folds", ["left out", "trained on", "sentences of it"], rows)
    session.reporter.result(f"{len(sizes)} runs, {_at_once(workers)}; of each:")
    return {**show_plan(session, task, model), "folds": dict(sizes), "side_by_side": len(workers)}


def _at_once(workers: list[dict[str, str]]) -> str:
    threads = workers[0].get("OMP_NUM_THREADS")
    own = f", threads of each: {threads}" if threads else ""
    return f"{len(workers)} side by side{own}" if len(workers) > 1 else f"one after the other{own}"


@contextmanager
def _honest_ending(folds: FoldsFolder) -> Iterator[None]:
    """Where the command ends early, say how far it came and how to continue."""
    try:
        yield
    except (ColakitError, KeyboardInterrupt) as error:
        finished = folds.count - len(folds.unfinished())
        message, hint = "left at once", ""
        if isinstance(error, ColakitError):
            message, hint = error.message, (error.hint or "").partition("Continue: ")[0]
        raise ColakitError(
            f"{message}; {finished} of {folds.count} folds are finished",
            hint=f"{hint} {folds.resume_hint()}".strip(),
            exit_code=getattr(error, "exit_code", EXIT_INTERRUPTED),
        ) from None


def _train(session: Session, folds: FoldsFolder, missing: list[int], workers: list[dict[str, str]]) -> None:
    reporter = session.reporter

    def tell(name: str, line: str) -> None:
        if line.startswith("warning: "):
            reporter.warn(f"{name}: {line.removeprefix('warning: ')}")
        elif not line.startswith("note: "):  # on the corpus, which this process has made already
            reporter.say(f"{name}: {line}")

    if missing:
        reporter.say(f"{len(missing)} of {folds.count} folds to train, {_at_once(workers)}")
    run_side_by_side([_child(session, folds, number) for number in missing], workers, tell)


def _child(session: Session, folds: FoldsFolder, number: int) -> Child:
    run = folds.run(number).path
    words = ["finetune", "--config", str(folds.shared.settings), "--out", str(run), "--resume", "auto"]
    words += ["--set", f"finetune.leave_out={folds.fold_spec(number)}"]
    return Child(run.name, (*words, *(["--quiet"] if session.reporter.quiet else [])))
