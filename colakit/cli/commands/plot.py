"""`colakit plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import command


@command("plot", {"--format": "plot.format"})
def plot_command(
    session: Session,
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders of them.")],
) -> dict[str, Any]:
    """Draw the curves of each run into its folder `plots`, and comparisons of several runs into --out.

    --out is `plots` in the current folder by default. For a single run, it takes the curves. Figures in it
    are replaced.
    """
    from colakit.api.plot import plot

    return plot(session, runs=runs)
