"""`colakit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command
from colakit.errors import ColakitError


@command(
    "evaluate",
    {
        **BASE_AND_DATA,
        "--start-token": "start_token",
        "--split": "evaluate.splits",
        "--batch-size": "evaluate.batch_size",
        "--group-by": "evaluate.group_by",
        "--annotations": "evaluate.annotations",
        "--classes": "evaluate.classes",
        "--ensembles": "evaluate.ensembles",
        "--errors": "evaluate.errors",
        "--disagreements": "evaluate.disagreements",
    },
)
def evaluate_command(
    session: Session,
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL…",
            help="Runs, folders of runs, ckpt.pt files, adapters; with --pairs or --text also bases, but no "
            "folders of runs.",
        ),
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Minimal pairs: JSON lines with `sentence_good` and `sentence_bad` (.jsonl, .gz, .xz), or a "
            "folder of them; repeatable.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Running text (plain, .gz, .xz) or a folder of it, measured in bits per byte; repeatable.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> dict[str, Any]:
    """Compare models on labelled splits; with --pairs or --text, compare language models.

    Without --data and --config, the data of the models' training runs is used. Students are compared with
    their teachers if both are given. --group-by source and --annotations FILE report slices of a split. --out
    takes all tables, and figures of slices, confusion matrices and calibration.

    --pairs: the share of pairs in which the acceptable sentence has the higher log-probability. --text: bits
    per byte of running text. In both, the base is scored if it is named or no MODEL is given.
    """
    if pairs and text:
        raise ColakitError("--pairs and --text cannot be combined", hint="Run them one after the other.")
    if text:
        from colakit.api.evaluate_text import evaluate_text

        return evaluate_text(session, models=models or [], texts=text)
    if pairs:
        from colakit.api.evaluate_pairs import evaluate_pairs

        return evaluate_pairs(session, models=models or [], pairs=pairs)
    if not models:
        raise ColakitError(
            "evaluate: no MODEL given",
            hint="Give run folders, ckpt.pt files or adapters; or minimal pairs (--pairs), or text (--text).",
        )
    from colakit.api.evaluate import evaluate

    return evaluate(session, models=models)
