"""`colakit finetune --folds K`: K runs, each without one fold of train, and what they say of the folds.

Every run is a `colakit finetune` in a process of its own, resumed or begun; `out_of_fold` reports them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from colakit.commands.children import Child, run_side_by_side
from colakit.commands.classifying import FREE_TO_CHANGE
from colakit.commands.fitting import differences, settings_identity
from colakit.commands.out_of_fold import report
from colakit.commands.task import Task, load_task, show_plan
from colakit.context import Context, Resume
from colakit.data.holdout import left_out
from colakit.engine.folds import FoldsFolder, find_folds
from colakit.engine.memory import physical_cores
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.loading import resolve, without_settings
from colakit.settings import Settings
from colakit.yaml_text import to_yaml

Plan = Callable[[Context, Task], nn.Module]


def run(context: Context, count: int, plan: Plan, *, resume: Resume) -> dict[str, Any]:
    """Train what is missing of `count` runs and report them; return the summary, or a dry run's plan.

    Args:
        plan: returns the model without its weights.
    """
    _refuse(context)
    _check_out(context, count, resume)
    task = load_task(context)
    model = plan(context, task)  # and with it what can be wrong with the base or the adapter
    sizes = _sizes(task, count)
    workers = _workers(context, count)
    if context.dry_run:
        return _show_plan(context, task, model, sizes, workers)
    context.out = context.claim_run_folder()
    folds = FoldsFolder(context.out, count)
    with folds.shared.lock.held():
        _check_out(context, count, resume)  # another process may have been here before
        missing = folds.unfinished()
        if not missing and folds.shared.summary.is_file():
            context.reporter.say(f"{folds.path} is finished; nothing to resume")
            return {**folds.shared.read_summary(), "run": str(folds.path)}
        folds.begin(to_yaml(context.settings))
        with _honest_ending(folds):
            _train(context, folds, missing, workers)
        return {**report(context, task, folds), "run": str(folds.path)}


def _refuse(context: Context) -> None:
    settings = context.settings.finetune
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


def _check_out(context: Context, count: int, resume: Resume) -> None:
    """Raise `ColakitError` unless runs can begin in `--out`, or those there go on as they began."""
    begun = find_folds(context.out) if context.out is not None and resume is not Resume.NEVER else None
    if begun is None:
        if context.is_resuming(resume):
            raise ColakitError(
                f"--out {context.out}: holds a run of its own, not one for each fold",
                hint="Name another folder, or leave --folds out.",
            )
        return
    context.check_out()
    if begun.count != count:
        raise ColakitError(
            f"--folds {count}: {begun.path} holds {begun.count} folds", hint=begun.how_to_continue()
        )
    saved = resolve(config=begun.shared.settings, environment={}).settings
    if differing := differences(_identity(saved), _identity(context.settings)):
        raise ColakitError(
            f"{begun.path}: the folds were started differently: {differing}", hint=begun.how_to_continue()
        )


def _identity(settings: Settings) -> dict[str, Any]:
    """Return the settings in which runs of one experiment agree."""
    free = FREE_TO_CHANGE | {"mirrors"}
    sections = settings_identity(settings, ("data", "lora", "finetune"), free)
    return {"seed": settings.seed, "base": settings.base, "precision": settings.precision, **sections}


def _sizes(task: Task, count: int) -> dict[str, int]:
    """Return for each fold, written i/k, how many sentences of train are in it."""
    folds = [f"{number}/{count}" for number in range(1, count + 1)]
    sizes = {fold: int(left_out(task.train.sentences, fold).sum()) for fold in folds}
    if empty := [fold for fold, size in sizes.items() if not size]:
        raise ColakitError(
            f"--folds {count}: no sentence of train falls into fold {empty[0]} ({len(task.train)} sentences)",
            hint="Ask for fewer folds.",
        )
    return sizes


def _workers(context: Context, count: int) -> list[dict[str, str]]:
    """Return the environment of each process that is to run beside the others.

    The settings come from a file, so that what set them in this process must not set them again.
    """
    environment = without_settings(os.environ)
    if context.compute.device.type != "cpu":
        return [environment]
    cores = physical_cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else max(1, cores // count)
    at_once = min(count, max(1, cores // threads))
    return [{**environment, "OMP_NUM_THREADS": str(threads)}] * at_once


def _show_plan(
    context: Context,
    task: Task,
    model: nn.Module,
    sizes: Mapping[str, int],
    workers: list[dict[str, str]],
) -> dict[str, Any]:
    rows = [[fold, str(len(task.train) - size), str(size)] for fold, size in sizes.items()]
    context.reporter.table("Folds", ["left out", "trained on", "sentences of it"], rows)
    context.reporter.result(f"{len(sizes)} runs, {_at_once(workers)}; of each:")
    return {**show_plan(context, task, model), "folds": dict(sizes), "side_by_side": len(workers)}


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
            hint=f"{hint} {folds.how_to_continue()}".strip(),
            exit_code=getattr(error, "exit_code", EXIT_INTERRUPTED),
        ) from None


def _train(context: Context, folds: FoldsFolder, missing: list[int], workers: list[dict[str, str]]) -> None:
    reporter = context.reporter

    def tell(name: str, line: str) -> None:
        if line.startswith("warning: "):
            reporter.warn(f"{name}: {line.removeprefix('warning: ')}")
        elif not line.startswith("note: "):  # on the corpus, which this process has made already
            reporter.say(f"{name}: {line}")

    if missing:
        reporter.say(f"{len(missing)} of {folds.count} folds to train, {_at_once(workers)}")
    run_side_by_side([_child(context, folds, number) for number in missing], workers, tell)


def _child(context: Context, folds: FoldsFolder, number: int) -> Child:
    run = folds.run(number).path
    words = ["finetune", "--config", str(folds.shared.settings), "--out", str(run), "--resume", "auto"]
    words += ["--set", f"finetune.leave_out={folds.leaves_out(number)}"]
    return Child(run.name, (*words, *(["--quiet"] if context.reporter.quiet else [])))
