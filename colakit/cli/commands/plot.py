"""`colakit plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import command


@command("plot", {"--format": "plot.format"})
def plot_command(
    session: Session, *, runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")]
) -> dict[str, Any]:
    """Draw the curves of run folders, and compare them."""
    from colakit.api.plot import plot

    return plot(session, runs=runs)
