"""The language model that samples for a transfer set: a base, tuned on the sentences of train first."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from colakit.api import finetune
from colakit.api.session import Session
from colakit.config.settings import FinetuneSettings
from colakit.data.tokens import SentenceTokenizer
from colakit.data.transfer import rounds
from colakit.distillation import samplers as writing
from colakit.distillation.samplers import SentenceSampler
from colakit.errors import ColakitError
from colakit.runtime.distributed import Processes
from colakit.storage.gpt2 import base_fingerprint, load_gpt, resolve_base
from colakit.storage.run_folder import RunFolder
from colakit.training.run import train_run
from colakit.training.sentence_lm import FREE_TO_CHANGE
from colakit.training.task_data import TaskData
from colakit.training.trainer import settings_identity
from colakit.utils.array_cache import WAIT_SECONDS, key_digest, pack_lines, unpack_lines
from colakit.utils.console import Reporter

FORMAT = 1  # raise it when writers are made differently
TUNING = (  # settings of `finetune` that a writer shares; the others are of classifiers
    *("method", "lr", "batch_size", "micro_batch_size", "weight_decay", "schedule", "warmup", "decay"),
    *("max_grad_norm", "base_dropout", "log_every", "save_every_steps"),
)


class TunedSampler:
    """A base that `transfer.sampler_epochs` passes over train have made write as train does.

    It is tuned once, as `finetune --objective language-modelling` would, in a run folder in the cache.

    Args:
        base: what is tuned; with no epochs, the writer itself.
    """

    def __init__(self, session: Session, task: TaskData, base: str) -> None:
        self.task, self.base = task, base
        self.epochs = session.settings.transfer.sampler_epochs
        settings = session.settings
        tuning = FinetuneSettings(
            objective="language-modelling",
            epochs=max(1, self.epochs),
            **{name: getattr(settings.finetune, name) for name in TUNING},
        )
        told = settings.model_copy(update={"base": base, "seed": settings.transfer.seed, "finetune": tuning})
        self.session = replace(
            session,
            command="writer",
            resolved=replace(session.resolved, settings=told),
            reporter=Reporter(quiet=session.reporter.quiet, within=True),
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Plain data that determines what it writes."""
        folder, settings = resolve_base(self.base), self.session.settings
        found = {
            "base": base_fingerprint(load_gpt(folder)),
            "tokenizer": SentenceTokenizer.from_folder(folder).vocabulary(),
            "compute": (self.session.training_compute if self.epochs else self.session.compute).arithmetic,
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
        }

    def folder(self) -> Path:
        """Return the folder of its weights, which are made now where they were not before.

        Raises:
            ColakitError: if the cache cannot be written, or the tuning ends early.
        """
        if not self.epochs:
            return resolve_base(self.base)
        run = RunFolder(self.session.cache_folder / "writers" / key_digest(self.identity))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColakitError(
                f"{error.filename or run.path}: {error.strerror}",
                hint="Name another cache: --set cache=FOLDER",
            ) from error
        with run.lock.held(WAIT_SECONDS, self._waiting):
            if not run.summary.is_file():
                self._tune(run)
        return run.base

    def _waiting(self, holder: str) -> None:
        self.session.reporter.say(f"process {holder} is tuning {self.base} to write; waiting for it")

    def _tune(self, run: RunFolder) -> None:
        self.session.reporter.say(f"tuning {self.base} to write sentences like those of train")
        try:
            training = finetune.language_model(self.session, self.task)
            resuming = bool(run.checkpoints.found())
            train_run(self.session, training, run, Processes(), resuming=resuming)
        except ColakitError as error:
            raise ColakitError(
                f"tuning the writer: {error.message}",
                hint=f"The same command goes on from there, or begins anew without {run.path}.",
                exit_code=error.exit_code,
            ) from error
        shutil.rmtree(run.checkpoints.folder)  # nobody goes on from a writer that is done

    def samples(self) -> Iterator[str]:
        """Yield sampled sentences that begin as those of train, without end unless hardly any is complete."""
        return self._rounds("samples")

    def resampled(self) -> Iterator[str]:
        """Yield sentences of train in which one word is another, without end."""
        return self._rounds("resampled")

    def _rounds(self, kind: Literal["samples", "resampled"]) -> Iterator[str]:
        numbers = itertools.count()
        return rounds(lambda: self._round(kind, next(numbers)), self.writer.least)

    def _round(self, kind: Literal["samples", "resampled"], number: int) -> Iterator[str]:
        """Yield what a round gives; a whole one is kept in the cache, for what goes on or draws more."""
        settings, arrays = self.session.settings.transfer, self.session.arrays
        seed = f"{settings.seed}, {kind}, round {number}"
        train = self.task.train
        key = {
            "writer": self.identity,
            "train": train.fingerprint(),
            "sampling": writing.FORMAT,
            "round_size": self.writer.round_size,
            "temperature": settings.temperature,
            "seed": seed,
        }
        if (found := arrays.find("written", key)) is not None:
            yield from unpack_lines(found)
            return
        written = []
        draw = self.writer.continuations if kind == "samples" else self.writer.resampled
        for sentence in draw(train.sentences, seed):
            written.append(sentence)
            yield sentence
        arrays.keep("written", key, pack_lines(written))

    @cached_property
    def writer(self) -> SentenceSampler:
        """The model that writes, in place."""
        compute, folder = self.session.compute, self.folder()
        model = load_gpt(folder).requires_grad_(False).eval()
        compute.place(model)
        tokenizer = SentenceTokenizer.from_folder(folder)
        return SentenceSampler(
            model, tokenizer, compute, temperature=self.session.settings.transfer.temperature
        )
