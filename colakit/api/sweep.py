"""`sweep`: many trainings that differ in the settings of a search space, and the best of them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from colakit.api.distill import distill, record_data_and_base
from colakit.api.finetune import finetune
from colakit.api.run_set import Environment, continue_with
from colakit.api.session import Session
from colakit.api.sweep_report import report_sweep
from colakit.api.train_scratch import refuse_unread_base, train_scratch
from colakit.config.paths import absolute_path
from colakit.config.resolve import changed, suggest_key, without_settings
from colakit.config.settings import describe_type, leaf_fields
from colakit.config.sweep import Range, SweepSettings
from colakit.errors import ColakitError
from colakit.evaluation.experiments import SECTIONS
from colakit.runtime.cpu import available_cpus
from colakit.storage.output import check_writable, claim_run_folder
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import Summary
from colakit.sweeps.runner import SweepRunner, TrialCommand
from colakit.sweeps.space import Choice, Dimension, as_choice, as_value, grid_of
from colakit.sweeps.study import SweepStudy, Worker
from colakit.training.job import differences
from colakit.utils.documents import read_document
from colakit.utils.extras import import_extra
from colakit.utils.files import write_json, write_text

RECORD = "sweep.json"
TRAIN: dict[str, Callable[..., dict[str, Any]]] = {
    "finetune": finetune,
    "distill": distill,
    "train-scratch": train_scratch,
}
NOT_SEARCHED = {"finetune.leave_out", "finetune.objective", "distill.teacher"}
REPORT_SECONDS = 3600.0  # for another worker in this folder to write the report


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, from its settings.

    Attributes:
        command: that trains a trial.
        num_trials: of a grid at most its combinations.
        objective: name of the maximised figure.
    """

    command: str
    settings: SweepSettings
    space: tuple[Dimension, ...]
    num_trials: int
    objective: str


def sweep(session: Session, *, command: str, storage: str | None = None) -> dict[str, Any]:
    """Train the trials of a sweep that have not ended, and return its summary (or the plan of a dry run).

    The same call continues a sweep that was stopped; with a shared `storage` it joins one that runs.

    Args:
        command: finetune, distill or train-scratch.
        storage: URL of a database, or path of an Optuna journal; default: a SQLite file in `session.out`.
    """
    import_extra("optuna", "sweep")
    if session.out is None and not session.dry_run:
        raise ColakitError("sweep: --out is missing", hint="Name a folder, such as --out runs/sweep.")
    plan = plan_sweep(session, command)
    trial = _trial_session(session, command)
    if session.dry_run:
        return _print_plan(session, trial, plan)
    identity = _identity(trial, plan)
    out = _open_folder(session, identity)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    url = storage or f"sqlite:///{(out / 'sweep.db').resolve()}"
    with Worker.registered(out) as worker:
        study = SweepStudy(url, f"{out.name}-{digest}", plan.settings, plan.space, plan.num_trials, worker)
        runner = SweepRunner(
            study,
            _trial_command(trial, plan, out),
            _environments(plan.settings.jobs),
            out,
            session.reporter,
            check=lambda values: changed(trial.settings, "sweep.space", values),
        )
        session.reporter.say(f"{runner.progress()}; {plan.settings.jobs} at a time")
        started = time.monotonic()
        with continue_with(f"the same command, with --out {shlex.quote(str(out))}", runner.progress):
            runner.run()
        seconds = time.monotonic() - started
        with RunFolder(out).lock.held(REPORT_SECONDS):
            summary = report_sweep(session, trial, runner, plan.objective)
    return {**summary, "run": str(out), "seconds": round(seconds, 1)}


def plan_sweep(session: Session, command: str) -> SweepPlan:
    """Return the plan of a sweep.

    Raises:
        ColakitError: if the search space is empty, or a setting or value of it is not valid.
    """
    settings = session.settings.sweep
    if command not in TRAIN:
        raise ColakitError(f"--command {command}: must be one of {', '.join(TRAIN)}")
    if not settings.space:
        raise ColakitError(
            "sweep.space is not set",
            hint="List settings in the YAML file: sweep: {space: {lora.rank: [4, 8, 16]}}",
        )
    if settings.folds is not None and command != "finetune":
        raise ColakitError(
            f"sweep.folds with --command {command}: only finetune has folds", hint="Use sweep.seeds."
        )
    if command == "finetune" and session.settings.finetune.objective != "classification":
        raise ColakitError("sweep: finetune.objective must be classification", hint="Remove the setting.")
    space = tuple(_dimension(session, command, key, value) for key, value in settings.space.items())
    num_trials = settings.trials
    if settings.sampler == "grid":
        num_trials = min(num_trials, len(grid_of(space, settings.sampler_seed)))
    objective = "out-of-fold MCC" if settings.folds else "val MCC"
    if settings.seeds is not None and len(settings.seeds) > 1:
        objective += f", mean of {len(settings.seeds)} seeds"
    return SweepPlan(command, settings, space, num_trials, objective)


def _dimension(session: Session, command: str, key: str, value: Range | tuple[Any, ...]) -> Dimension:
    """Return a setting of the space; choices are validated by the setting."""
    origin = session.resolved.origins.get("sweep.space", "settings")
    fields = dict(leaf_fields())
    sections = tuple(name for name in SECTIONS[command] if name != "data")
    searched = [each for each in fields if each.partition(".")[0] in sections and each not in NOT_SEARCHED]
    if key not in fields:
        siblings = [each for each in searched if each.partition(".")[0] == key.partition(".")[0]]
        raise ColakitError(
            f"{origin}: sweep.space: {key} is not a setting.{suggest_key(key, siblings, searched)}",
            hint="`colakit config reference` lists every setting.",
        )
    if key not in searched:
        raise ColakitError(
            f"{origin}: sweep.space: {key} cannot be searched by --command {command}",
            hint=f"Search settings of {', '.join(sections)}.",
        )

    def validated(choice: Choice) -> Choice:
        settings = changed(session.settings, f"{origin}: sweep.space", {key: as_value(choice)})
        return as_choice(reduce(getattr, key.split("."), settings))

    if not isinstance(value, Range):
        return Dimension(key, tuple(dict.fromkeys(validated(as_choice(choice)) for choice in value)))
    kind = describe_type(fields[key].annotation)
    if kind not in ("integer", "number"):
        raise ColakitError(
            f"{origin}: sweep.space: {key} is not a number; a range needs one", hint="List its choices."
        )
    is_integer = kind == "integer"
    ends = [int(end) if is_integer and end == int(end) else end for end in (value.low, value.high)]
    low, high = (float(validated(end) or 0) for end in ends)
    return Dimension(key, (), low, high, value.step, value.log, is_integer)


def _trial_session(session: Session, command: str) -> Session:
    """Return the session of a trial, with the settings that all trials share; they do not evaluate dev.

    Raises:
        ColakitError: if a distillation has no teacher, or a base is typed that no trial reads.
    """
    settings = session.settings.model_copy(update={"evaluate_dev": False})
    resolved = replace(session.resolved, settings=settings)
    trial = replace(session, command=command, resolved=resolved, out=None)
    if command == "distill":
        record_data_and_base(trial)
    if command == "train-scratch":
        refuse_unread_base(trial)
    return trial


def _print_plan(session: Session, trial: Session, plan: SweepPlan) -> dict[str, Any]:
    """Print the plan of a trial and of the sweep, and return them as plain data."""
    runs: dict[str, Any] = {} if plan.settings.seeds is None else {"seeds": plan.settings.seeds}
    if plan.settings.folds is not None:
        runs = {"num_folds": plan.settings.folds}
    details = TRAIN[plan.command](trial, **runs)
    space = {each.key: each.describe() for each in plan.space}
    session.reporter.table("search space", ["setting", "values"], [[*row] for row in space.items()])
    session.reporter.result(
        f"{plan.num_trials} trials of {plan.command} as above, {plan.settings.jobs} at a time "
        f"(sampler {plan.settings.sampler}, pruner {plan.settings.pruner}); objective: {plan.objective}"
    )
    return {"trials": plan.num_trials, "space": space, "objective": plan.objective, "trial": details}


def _identity(trial: Session, plan: SweepPlan) -> dict[str, Any]:
    """Return what all workers of a sweep must share, without paths of this machine."""
    settings = trial.portable_settings()
    sections = {name: settings[name] for name in SECTIONS[plan.command]}
    sections["sweep"] = plan.settings.model_dump(mode="json", exclude={"trials", "jobs", "heartbeat_seconds"})
    return {
        "command": plan.command,
        **{name: settings[name] for name in ("base", "precision", "seed")},
        **{f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()},
        "fingerprints": trial.load_corpus().fingerprints(),
    }


def _open_folder(session: Session, identity: Mapping[str, Any]) -> Path:
    """Create and return the folder of the sweep.

    Raises:
        ColakitError: if it holds something else, or a sweep of other settings.
    """
    assert session.out is not None
    check_writable(session.out)
    record = session.out / RECORD
    if record.is_file():
        saved = read_document(record, Summary).model_dump()
        if differing := differences(saved.get("identity", {}), identity):
            raise ColakitError(
                f"--out {session.out}: holds a sweep that was started differently: {differing}",
                hint="Choose another folder, or give the settings of that sweep.",
            )
        return session.out
    if session.out.is_dir() and any(session.out.iterdir()):
        raise ColakitError(f"--out {session.out}: folder is not empty", hint="Choose another folder.")
    out = claim_run_folder("sweep", session.out)
    write_json(record, {"command": "sweep", "identity": identity})
    return out


def _trial_command(trial: Session, plan: SweepPlan, out: Path) -> TrialCommand:
    """Write the settings that all trials share, and return the command of a trial."""
    path = out / "trial-settings.yaml"
    write_text(path, trial.settings_yaml)
    words: list[str] = []
    if plan.command == "distill" and trial.resolved.was_typed("base"):
        words += ["--base", absolute_path(trial.settings.base)]
    first, objective = ".", ["splits", "val", "mcc"]
    if plan.settings.folds is not None:
        words += ["--folds", str(plan.settings.folds)]
        first, objective = "fold-1", ["out_of_fold", "mcc"]
    elif (seeds := plan.settings.seeds) is not None:
        words += ["--seeds", ",".join(map(str, seeds))]
        first, objective = f"seed-{seeds[0]}", [*objective, "mean"]
    return TrialCommand(plan.command, path, tuple(words), first, tuple(objective))


def _environments(jobs: int) -> list[Environment]:
    """Return the environment of each trial that runs at a time; they share the cores."""
    environment = without_settings(os.environ)
    threads = str(max(1, available_cpus() // jobs))
    limits = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "OMP_THREAD_LIMIT": threads}
    return [{**environment, **limits}] * jobs
