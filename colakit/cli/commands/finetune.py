"""`colakit finetune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, ResumeOption, SeedsOption, command
from colakit.storage.output import Resume


@command(
    "finetune",
    {
        **BASE_AND_DATA,
        "--track": "track",
        "--start-token": "start_token",
        "--objective": "finetune.objective",
        "--method": "finetune.method",
        "--rank": "lora.rank",
        "--alpha": "lora.alpha",
        "--dora": "lora.dora",
        "--rslora": "lora.rslora",
        "--init": "lora.init",
        "--loraplus": "lora.loraplus_lr_ratio",
        "--lora-dropout": "lora.dropout",
        "--target-modules": "lora.target_modules",
        "--layers-to-transform": "lora.layers_to_transform",
        "--epochs": "finetune.epochs",
        "--lr": "finetune.lr",
        "--batch-size": "finetune.batch_size",
    },
)
def finetune_command(
    session: Session,
    *,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1000,
            metavar="K",
            help="Train K models, each without one fold of train, in --out/fold-1 to fold-K.",
        ),
    ] = None,
    seeds: SeedsOption = None,
    resume: ResumeOption = Resume.NEVER,
) -> dict[str, Any]:
    """Fine-tune a base model with LoRA for classification (or language modelling).

    With --seeds or --folds, runs train in processes of their own: as many side by side as there are CPU cores
    (OMP_NUM_THREADS sets the threads of each), on a GPU one after the other. With --folds, each sentence of
    train is then labelled by the model that was not trained on it.
    """
    from colakit.api.finetune import finetune

    return finetune(session, resume=resume, num_folds=folds, seeds=seeds)
