"""Results of `--seeds`: every run on every split, with mean and standard deviation over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colakit.evaluation.tables import METRICS, Table, spread_table, spreads


def combine_seeds(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of all runs from their own, by seed."""
    first = next(iter(summaries.values()))
    runs = [
        {
            "run": f"seed-{seed}",
            "seed": seed,
            **{key: summary[key] for key in ("steps", "examples", "threshold", "seconds")},
            "splits": {
                name: {key: split[key] for key in ("num_examples", *METRICS)}
                for name, split in summary["splits"].items()
            },
        }
        for seed, summary in summaries.items()
    ]
    return {
        "command": first["command"],
        "seeds": list(summaries),
        "model": first["model"],
        "experiment": first["experiment"],
        "labels": first["labels"],
        "max_steps": first["max_steps"],
        "runs": runs,
        "splits": {name: spreads([run["splits"][name] for run in runs]) for name in first["splits"]},
    }


def seed_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return a table of every split (each seed, mean ± sd), and one of steps and sentences seen."""
    runs = summary["runs"]
    tables = [
        spread_table(
            f"{summary['command']}, {len(runs)} seeds: {name}",
            "seed",
            {str(run["seed"]): run["splits"][name] for run in runs},
            spread,
        )
        for name, spread in summary["splits"].items()
    ]
    rows = [
        [str(run["seed"]), f"{run['steps']:,}", f"{run['examples']:,}", f"{run['seconds']:.0f}"]
        for run in runs
    ]
    columns = ["seed", "steps", "sentences seen", "seconds"]
    return [*tables, (f"{summary['command']}, {len(runs)} seeds: training", columns, rows)]
