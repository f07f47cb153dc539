"""`finetune --folds K`: K runs, each without one fold of train, and their out-of-fold metrics.

Each run is a `colakit finetune` process of its own, started or resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from colakit.api.session import Session
from colakit.config.resolve import resolve, without_settings
from colakit.config.settings import Settings
from colakit.config.yaml import to_yaml
from colakit.data.splits import left_out
from colakit.distillation.teachers import load_teachers
from colakit.errors import EXIT_INTERRUPTED, ColakitError
from colakit.evaluation.comparison import experiment_key, fold_of
from colakit.evaluation.out_of_fold import FoldModel, combine_folds, fold_tables
from colakit.evaluation.tables import print_tables
from colakit.runtime.cpu import available_cpus
from colakit.runtime.subprocesses import Child, run_side_by_side
from colakit.storage.folds import FoldsFolder, open_folds
from colakit.storage.output import Resume, check_writable, claim_run_folder
from colakit.storage.run_schemas import ClassifierSummary, Summary
from colakit.training.classifier_trainer import MAY_CHANGE
from colakit.training.job import differences, settings_identity
from colakit.training.run import is_resuming
from colakit.training.task_data import TaskData


def cross_validate(
    session: Session, count: int, build_model: Callable[[Session, TaskData], nn.Module], *, resume: Resume
) -> dict[str, Any]:
    """Train the unfinished runs of `count` and report all; return the summary (or the plan of a dry run).

    Args:
        build_model: returns the model without weights; finds errors of base and adapter before any training.
    """
    _check_settings(session)
    _check_out(session, count, resume)
    task = session.load_task()
    model = build_model(session, task)
    sizes = _fold_sizes(task, count)
    workers = _workers(session, count)
    if session.dry_run:
        rows = [[fold, str(len(task.train) - size), str(size)] for fold, size in sizes.items()]
        session.reporter.table("Folds", ["left out", "trained on", "sentences of it"], rows)
        session.reporter.result(f"{len(sizes)} runs, {_describe(workers)}; each:")
        return {**session.plan(task, model), "folds": sizes, "side_by_side": len(workers)}
    folds = FoldsFolder(claim_run_folder(session.command, session.out), count)
    session.out = folds.path
    with folds.shared.lock.held():
        _check_out(session, count, resume)  # another process may have used the folder since
        missing = folds.unfinished()
        if not missing and folds.shared.summary.is_file():
            session.reporter.say(f"{folds.path} is finished; nothing to resume")
            return {
                **folds.shared.read_summary(Summary).model_dump(exclude_unset=True),
                "run": str(folds.path),
            }
        folds.create(to_yaml(session.settings))
        with _errors_with_progress(folds):
            _train(session, folds, missing, workers)
        return {**_report(session, task, folds), "run": str(folds.path)}


def _check_settings(session: Session) -> None:
    settings = session.settings.finetune
    if settings.leave_out is not None:
        raise ColakitError(
            f"--folds with finetune.leave_out={settings.leave_out}: --folds leaves out each fold once",
            hint="Remove one of them.",
        )
    if settings.objective != "classification":
        raise ColakitError(
            f"--folds with finetune.objective={settings.objective}: folds are for classification",
            hint="Remove --folds.",
        )
    if "RANK" in os.environ:
        raise ColakitError("--folds under torchrun: it starts processes itself", hint="Run colakit directly.")


def _check_out(session: Session, count: int, resume: Resume) -> None:
    """Raise `ColakitError` unless runs can start in `--out`, or the runs in it were started like these."""
    folds = open_folds(session.out) if session.out is not None and resume is not Resume.NEVER else None
    if folds is None:
        if is_resuming(session.out, resume):
            raise ColakitError(
                f"--out {session.out}: holds a single run, not folds",
                hint="Choose another folder, or remove --folds.",
            )
        return
    check_writable(folds.path)
    if folds.count != count:
        raise ColakitError(f"--folds {count}: {folds.path} has {folds.count} folds", hint=folds.resume_hint())
    saved = resolve(config=folds.shared.settings, environment={}).settings
    if differing := differences(_identity(saved), _identity(session.settings)):
        raise ColakitError(
            f"{folds.path}: the folds were started differently: {differing}", hint=folds.resume_hint()
        )


def _identity(settings: Settings) -> dict[str, Any]:
    """Return the settings that must be equal in all runs."""
    sections = {
        name: getattr(settings, name).model_dump(mode="json", exclude=MAY_CHANGE | {"mirrors"})
        for name in ("data", "lora", "finetune")
    }
    own = {"seed": settings.seed, "base": settings.base, "precision": settings.precision}
    return {**own, **settings_identity(**sections)}


def _fold_sizes(task: TaskData, count: int) -> dict[str, int]:
    """Return the number of sentences of train by fold `i/k`."""
    folds = [f"{number}/{count}" for number in range(1, count + 1)]
    sizes = {fold: int(left_out(task.train.sentences, fold).sum()) for fold in folds}
    if empty := [fold for fold, size in sizes.items() if not size]:
        raise ColakitError(
            f"--folds {count}: fold {empty[0]} is empty ({len(task.train)} sentences of train)",
            hint="Use fewer folds.",
        )
    return sizes


def _workers(session: Session, count: int) -> list[dict[str, str]]:
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


def _describe(workers: list[dict[str, str]]) -> str:
    threads = workers[0].get("OMP_NUM_THREADS")
    each = f", {threads} thread(s) each" if threads else ""
    return f"{len(workers)} side by side{each}" if len(workers) > 1 else f"one after the other{each}"


@contextmanager
def _errors_with_progress(folds: FoldsFolder) -> Iterator[None]:
    """Add the number of finished folds and how to continue to errors."""
    try:
        yield
    except (ColakitError, KeyboardInterrupt) as error:
        finished = folds.count - len(folds.unfinished())
        message, hint = "Interrupted", ""
        if isinstance(error, ColakitError):
            message, hint = error.message, (error.hint or "").partition("Continue: ")[0]
        raise ColakitError(
            f"{message}; {finished} of {folds.count} folds are finished",
            hint=f"{hint} {folds.resume_hint()}".strip(),
            exit_code=getattr(error, "exit_code", EXIT_INTERRUPTED),
        ) from None


def _train(session: Session, folds: FoldsFolder, missing: list[int], workers: list[dict[str, str]]) -> None:
    reporter = session.reporter

    def show(name: str, line: str) -> None:
        if line.startswith("warning: "):
            reporter.warn(f"{name}: {line.removeprefix('warning: ')}")
        elif not line.startswith("note: "):  # notes on the corpus were printed by this process
            reporter.say(f"{name}: {line}")

    if missing:
        reporter.say(f"{len(missing)} of {folds.count} folds to train, {_describe(workers)}")
    children = []
    for number in missing:
        run = folds.run(number).path
        words = ["finetune", "--config", str(folds.shared.settings), "--out", str(run), "--resume", "auto"]
        words += ["--set", f"finetune.leave_out={folds.fold_spec(number)}"]
        children.append(Child(run.name, (*words, *(["--quiet"] if reporter.quiet else []))))
    run_side_by_side(children, workers, show)


def _report(session: Session, task: TaskData, folds: FoldsFolder) -> dict[str, Any]:
    """Write, print and return the out-of-fold metrics.

    Raises:
        ColakitError: if a run left out another fold than its own.
    """
    outputs = []
    for number in folds.numbers():  # one model in memory at a time
        run, fold = folds.run(number), folds.fold_spec(number)
        (teacher,) = load_teachers(
            [str(run.path)],
            task.corpus.label_names,
            base=session.settings.base if session.resolved.was_typed("base") else None,
            compute=session.compute,
            arrays=session.arrays,
            reporter=session.reporter,
        )
        if (trained_without := fold_of(teacher.classifier.origin)) != fold:
            raise ColakitError(
                f"{run.path}: left out {f'fold {trained_without}' if trained_without else 'no fold'}; "
                f"it must leave out fold {fold}",
                hint=f"Delete it to train it again. {folds.resume_hint()}",
            )
        logits = teacher.logits(task.train)  # of all of train: `distill` needs them later
        labels = teacher.classifier.predict_labels(logits)
        unseen = teacher.unseen(task.train)
        outputs.append(
            FoldModel(
                run.path.name, fold, run.read_summary(ClassifierSummary).model_dump(), unseen, logits, labels
            )
        )
    labels = task.train.require_labels()
    result, predictions = combine_folds(labels, outputs)
    summary = {
        "command": session.command,
        "folds": folds.count,
        "experiment": experiment_key(teacher.classifier.origin),
        "seed": session.settings.seed,
        "labels": list(task.corpus.label_names),
        **result,
    }
    folds.shared.write_predictions({"out_of_fold": (labels, predictions)})
    folds.shared.write_summary(summary)
    print_tables(fold_tables(summary), session.reporter)
    if result["out_of_fold"]["collapsed"]:
        session.reporter.warn("all models predict one class for all sentences they were not trained on")
    session.reporter.result(f"{folds.path}: {folds.count} runs, usable with `colakit distill --teacher`")
    return summary
