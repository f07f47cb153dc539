"""`colakit train-scratch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import (
    BASE_AND_DATA,
    STUDENT_FLAGS,
    ResumeOption,
    SeedsOption,
    command,
)
from colakit.storage.output import Resume


@command(
    "train-scratch",
    {**STUDENT_FLAGS, "--transfer-size": "transfer.size", "--track": "track", **BASE_AND_DATA},
)
def train_scratch_command(
    session: Session,
    *,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Take data, base, student, steps and seed of a run of distill; flags override them.",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = None,
    resume: ResumeOption = Resume.NEVER,
) -> dict[str, Any]:
    """Train the same student on the labels alone: the control for `distill`.

    It takes as many steps as `distill` with the same settings, or as the run of --like.
    `--set train_scratch.budget=epochs` trains for --epochs passes over train instead.
    """
    from colakit.api.train_scratch import train_scratch

    return train_scratch(session, resume=resume, like=like, seeds=seeds)
