"""`colakit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command


@command(
    "report",
    {
        **BASE_AND_DATA,
        "--group-by": "evaluate.group_by",
        "--annotations": "evaluate.annotations",
        "--split": "evaluate.splits",
    },
)
def report_command(
    session: Session,
    *,
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Run folders, or folders of them.")],
    sweep: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished sweep, to be described too.", metavar="DIR", show_default=False
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Folder that evaluate --pairs wrote, to be described too.", metavar="DIR", show_default=False
        ),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(
            help="Write the tables alone, each into a file of the folder --out.",
            metavar="tex|csv|tex,csv",
            show_default=False,
        ),
    ] = None,
) -> dict[str, Any]:
    """Write a report on finished runs: data, method, parameters, results, curves, costs, limits.

    --out names the file; its suffix is the format: .pdf (default: report.pdf), .typ (Typst), .tex, .md or
    .html. The runs are measured as `evaluate` does, on the data that they record. --group-by source and
    --annotations FILE add heat maps of slices.
    """
    from colakit.api.report import report

    formats = tables.split(",") if tables else ()
    return report(session, runs=runs, sweep=sweep, pairs=pairs, tables=formats)
