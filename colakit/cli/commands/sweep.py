"""`colakit sweep`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command


class Trained(str, Enum):
    """Commands that a trial can run."""

    FINETUNE = "finetune"
    DISTILL = "distill"
    TRAIN_SCRATCH = "train-scratch"


@command("sweep", {"--trials": "sweep.trials", "--jobs": "sweep.jobs", **BASE_AND_DATA})
def sweep_command(
    session: Session,
    *,
    trained: Annotated[Trained, typer.Option("--command", help="Command that trains a trial.")],
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database that several machines share, such as postgresql+psycopg://USER@HOST/NAME, or path "
            "of an Optuna journal; default: OUT/sweep.db.",
            show_default=False,
        ),
    ] = None,
) -> dict[str, Any]:
    """Search for settings: train many trials, report the best, and evaluate it alone on dev.

    The section `sweep` of --config holds the search space. A trial is a run folder in --out/trials. Its
    figure is the MCC on the validation split, or out of fold with `sweep.folds`. The same command continues a
    sweep that was stopped. With --storage, the same command on another machine joins it.
    """
    from colakit.api.sweep import sweep

    return sweep(session, command=trained.value, storage=storage)
