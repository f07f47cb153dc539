"""`colakit export`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command


class Format(str, Enum):
    """Which files are written."""

    ALL = "all"
    ONNX = "onnx"
    TRANSFORMERS = "transformers"
    PEFT = "peft"


class Quantize(str, Enum):
    """Weights of further ONNX files."""

    INT8 = "int8"
    INT4 = "int4"
    NONE = "none"


@command("export", {**BASE_AND_DATA, "--split": "evaluate.splits"})
def export_command(
    session: Session,
    *,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, ckpt.pt or adapter folder.")],
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            help="all: onnx and transformers; peft: an adapter for mixed batches and hot-swap, and its base.",
        ),
    ] = Format.ALL,
    quantize: Annotated[
        list[Quantize],
        typer.Option(
            help="Further ONNX files: 8-bit or (of a GPT) 4-bit weights, in the fastest way that keeps the "
            "answers; repeatable. none: fp32 only.",
            show_default="int8",
        ),
    ] = [Quantize.INT8],  # noqa: B006 - Typer copies it
    fold_threshold: Annotated[
        bool,
        typer.Option(
            "--fold-threshold",
            help="Move the threshold into a bias: the largest logit then decides as it does.",
        ),
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence of the model card; default: that of the base."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Upload the folder to the hub, as a private model if it is new."
        ),
    ] = None,
) -> dict[str, Any]:
    """Write a classifier for other programs: ONNX, transformers, PEFT, JavaScript, C#.

    Every file is compared with the run on labelled data (default: the reported splits of the run's own). If
    an fp32 file differs, or a quantised one flips more than 2 % of the answers or moves MCC by more than
    0.02, nothing is written. Logits are divided by the calibration's temperature.
    """
    from colakit.api.export import export

    kinds = [each.value for each in dict.fromkeys(quantize) if each is not Quantize.NONE]
    return export(
        session,
        run,
        kind=kind.value,
        quantize=kinds,
        fold_threshold=fold_threshold,
        licence=licence,
        push=push,
    )
