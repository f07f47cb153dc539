"""`--seeds 0,1,2`: one run for each seed, and the mean and standard deviation over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colakit.api.run_set import describe_workers, plan_run_set, threads_of, train_run_set, workers
from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.evaluation.seeds import combine_seeds, seed_tables
from colakit.evaluation.tables import print_tables
from colakit.storage.output import Resume
from colakit.storage.run_schemas import ClassifierSummary
from colakit.storage.run_set import RunSet, open_run_set
from colakit.utils.plan import describe_seconds


def plan_seeds(
    session: Session, seeds: Sequence[int] | None, plan_run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Print how the seeds would be trained, then the plan of each run; return both as plain data.

    Args:
        seeds: None for a single run.
        plan_run: prints the plan of a run and returns it.
    """
    if seeds is None:
        return plan_run()
    environments = workers(session, len(seeds))
    named = ", ".join(map(str, seeds))
    session.reporter.result(f"seeds: {named}; {len(seeds)} runs, {describe_workers(environments)}; each:")
    with threads_of(environments[0]):
        plan = plan_run()
    seconds = [stage["estimated_seconds"] for stage in plan["stages"].values()]
    if seconds and None not in seconds:
        total = sum(seconds) * -(-len(seeds) // len(environments))
        session.reporter.result(f"estimated time of all {len(seeds)} runs: {describe_seconds(total)}")
    return {"seeds": list(seeds), "side_by_side": len(environments), **plan}


def train_seeds(
    session: Session,
    seeds: Sequence[int],
    *,
    resume: Resume,
    check: Callable[[], object],
    words: Callable[[int], Sequence[str]] = lambda seed: (),
) -> dict[str, Any]:
    """Train the unfinished runs and return the summary of all.

    Args:
        check: raises errors of data, base or teachers before any training.
        words: further arguments of the command of a run.
    """
    runs, saved = plan_run_set(session, "seeds", seeds, resume=resume)
    check()
    return train_run_set(
        session, runs, saved, resume=resume, report=lambda runs: _report(session, runs), words=words
    )


def teachers_by_seed(teachers: Sequence[str], seeds: Sequence[int]) -> dict[int, list[str]]:
    """Return the teachers of each seed: of a folder of seeds the run with the same seed, else all.

    Raises:
        ColakitError: if a folder of seeds lacks one of `seeds`.
    """
    result: dict[int, list[str]] = {seed: [] for seed in seeds}
    for path in teachers:
        runs = open_run_set(Path(path))
        is_per_seed = runs is not None and runs.kind == "seeds"
        for seed, own in result.items():
            if not is_per_seed:
                own.append(path)
                continue
            assert runs is not None
            if seed not in runs.values:
                raise ColakitError(
                    f"--teacher {path}: has no seed {seed}; it was started with {runs.flag()}",
                    hint=f"Give {runs.flag()}, or a single run: --teacher {runs.run(runs.values[0]).path}",
                )
            own.append(str(runs.run(seed).path))
    return result


def _report(session: Session, runs: RunSet) -> dict[str, Any]:
    """Write, print and return the metrics of all seeds."""
    summary = combine_seeds(
        {seed: runs.run(seed).read_summary(ClassifierSummary).model_dump() for seed in runs.values}
    )
    runs.shared.write_summary(summary)
    print_tables(seed_tables(summary), session.reporter)
    session.reporter.result(f"{runs.path}: {len(runs.values)} runs")
    return summary
