"""The language model that samples for a transfer set: a base, tuned on the sentences of train first."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from colakit.commands import finetune
from colakit.commands.fitting import settings_identity
from colakit.commands.runner import train_run
from colakit.commands.sentence_model import FREE_TO_CHANGE
from colakit.commands.task import Task
from colakit.console import Reporter
from colakit.context import Context
from colakit.data.cache import key_digest
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.distributed import Processes
from colakit.engine.runs import RunFolder
from colakit.engine.writing import Writer
from colakit.interop.gpt2 import base_fingerprint, load_gpt, resolve_base

WAIT_SECONDS = 6 * 3600.0  # for another process that tunes the same one


class TunedWriter:
    """A base that `transfer.writer_epochs` passes over train have made write as train does.

    It is tuned once, as `finetune --objective language_modelling` would, in a run folder in the cache.

    Args:
        base: what is tuned; with no epochs, the writer itself.
    """

    def __init__(self, context: Context, task: Task, base: str) -> None:
        self.task, self.base = task, base
        self.epochs = context.settings.transfer.writer_epochs
        settings = context.settings
        changes = {"objective": "language_modelling", "leave_out": None, "from_scratch": False}
        tuning = settings.finetune.model_copy(update={**changes, "epochs": max(1, self.epochs)})
        told = settings.model_copy(update={"base": base, "seed": settings.transfer.seed, "finetune": tuning})
        self.context = replace(
            context,
            command="finetune",
            resolved=replace(context.resolved, settings=told),
            reporter=Reporter(quiet=context.reporter.quiet, results_on_stderr=True),
        )

    def identity(self) -> dict[str, Any]:
        """Return plain data that determines its weights."""
        base = base_fingerprint(load_gpt(resolve_base(self.base)))
        if not self.epochs:
            return {"base": base}
        settings = self.context.settings
        tuning = settings_identity(settings, ("lora", "finetune"), FREE_TO_CHANGE)
        return {"base": base, **self.task.identity(), "seed": settings.seed, **tuning}

    def folder(self) -> Path:
        """Return the folder of its weights, which are made now where they were not before."""
        if not self.epochs:
            return resolve_base(self.base)
        run = RunFolder(self.context.cache_folder / "writers" / key_digest(self.identity()))
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock.held(WAIT_SECONDS):
            if not run.summary.is_file():
                self.context.reporter.say(f"tuning {self.base} to write sentences like those of train")
                training = finetune.language_model(self.context, self.task)
                resuming = bool(run.checkpoints.found())
                train_run(self.context, training, run, Processes(), resuming=resuming)
        return run.base

    def load(self, rng: random.Random) -> Writer:
        """Return what writes, in place.

        Args:
            rng: draws what is to be continued.
        """
        settings, compute, folder = self.context.settings.transfer, self.context.compute, self.folder()
        model = load_gpt(folder).requires_grad_(False).eval()
        compute.place(model)
        return Writer(
            model,
            SentenceTokenizer.from_folder(folder),
            compute,
            temperature=settings.temperature,
            rng=rng,
            generator=torch.Generator().manual_seed(settings.seed),
        )
