"""The language model that samples for a transfer set: a base, tuned on the sentences of train first."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from functools import cached_property
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
from colakit.errors import ColakitError
from colakit.interop.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.settings import FinetuneSettings

FORMAT = 1  # raise it when writers are made differently
TUNING = (  # settings of `finetune` that a writer shares; the others are of classifiers
    *("method", "lr", "batch_size", "micro_batch_size", "weight_decay", "schedule", "warmup", "decay"),
    *("clip_norm", "base_dropout", "log_every", "save_every_steps"),
)
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
        tuning = FinetuneSettings(
            objective="language_modelling",
            epochs=max(1, self.epochs),
            **{name: getattr(settings.finetune, name) for name in TUNING},
        )
        told = settings.model_copy(update={"base": base, "seed": settings.transfer.seed, "finetune": tuning})
        self.context = replace(
            context,
            command="writer",
            resolved=replace(context.resolved, settings=told),
            reporter=Reporter(quiet=context.reporter.quiet, within=True),
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Plain data that determines what it writes."""
        folder, settings = resolve_base(self.base), self.context.settings
        found = {
            "base": base_fingerprint(load_gpt(folder)),
            "tokenizer": SentenceTokenizer.from_folder(folder).vocabulary(),
        }
        if not self.epochs:
            return found
        return {
            **found,
            **self.task.identity(),
            **settings_identity(settings, ("lora", "finetune"), FREE_TO_CHANGE),
            "format": FORMAT,
            "seed": settings.seed,
            "max_tokens": settings.data.max_tokens,
            "compute": self.context.compute.arithmetic,
        }

    def folder(self) -> Path:
        """Return the folder of its weights, which are made now where they were not before.

        Raises:
            ColakitError: if the cache cannot be written, or the tuning ends early.
        """
        if not self.epochs:
            return resolve_base(self.base)
        run = RunFolder(self.context.cache_folder / "writers" / key_digest(self.identity))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColakitError(
                f"{error.filename or run.path}: {error.strerror}",
                hint="Name another cache: --set cache=FOLDER",
            ) from error
        with run.lock.held(WAIT_SECONDS):
            if not run.summary.is_file():
                self._tune(run)
        return run.base

    def _tune(self, run: RunFolder) -> None:
        self.context.reporter.say(f"tuning {self.base} to write sentences like those of train")
        try:
            training = finetune.language_model(self.context, self.task)
            resuming = bool(run.checkpoints.found())
            train_run(self.context, training, run, Processes(), resuming=resuming)
        except ColakitError as error:
            raise ColakitError(
                f"tuning the writer: {error.message}",
                hint="The same command again goes on from there.",
                exit_code=error.exit_code,
            ) from error
        shutil.rmtree(run.checkpoints.folder)  # nobody goes on from a writer that is done

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
