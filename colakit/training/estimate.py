"""Estimates of a training's seconds, from a few steps of a copy of the model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from colakit.errors import ColakitError
from colakit.runtime.device import Compute
from colakit.runtime.seeding import restore_rng, rng_state
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import Objective
from colakit.utils.plan import Stage

if TYPE_CHECKING:
    from colakit.training.trainer import Trainer

MAX_SECONDS = 2.0  # of measured steps; the first, slower step is not counted
MAX_STEPS = 12
SHARE_OF_RUN = 20  # at most every twentieth of a run's steps is measured
SAMPLE = 64  # evaluated sentences

TRAINING, EVALUATING, CACHING = "training", "evaluating", "caching frozen blocks"


def plan_training(trainer: Trainer) -> list[Stage]:
    """Return the stages of the training that `trainer` is about to run, with their estimated seconds.

    Weights, optimizer and random generators of the trainer do not change.
    """
    during, at_end = trainer.evaluated_sentences()
    steps = trainer.max_steps - trainer.step
    frozen, remaining = trainer.frozen_sentences(), during * steps // max(1, trainer.max_steps)
    stages = [
        *([Stage(CACHING, sentences=frozen)] if frozen else []),
        Stage(TRAINING, steps=steps),
        *([Stage(EVALUATING, sentences=at_end)] if at_end else []),
    ]
    rng = rng_state(trainer.compute.device)
    try:
        state_seconds, step_seconds = _measure_steps(trainer, caches_states=bool(frozen))
        sentence_seconds = trainer.seconds_per_evaluated_sentence(SAMPLE)
    except ColakitError:  # out of memory: the training itself reports it
        return stages
    finally:
        restore_rng(rng, trainer.compute.device)
    estimates = {
        CACHING: frozen * state_seconds,
        TRAINING: steps * step_seconds + remaining * sentence_seconds,
        EVALUATING: at_end * sentence_seconds,
    }
    return [replace(stage, estimate=estimates[stage.name]) for stage in stages]


def _measure_steps(trainer: Trainer, *, caches_states: bool) -> tuple[float, float]:
    """Return the seconds per sentence of frozen blocks (0 without a cache), and the seconds per step."""
    job = trainer.job
    model, optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
    model.train()
    state_seconds, num_sentences = 0.0, 0

    def batches() -> Iterator[StepBatch]:
        nonlocal state_seconds, num_sentences
        for step in islice(trainer.batches(), 1 + min(MAX_STEPS, -(-trainer.max_steps // SHARE_OF_RUN))):
            begin = time.monotonic()
            if caches_states:
                step = replace(step, micro_batches=[trainer.with_states(each) for each in step.micro_batches])
            state_seconds += time.monotonic() - begin
            num_sentences += sum(map(len, step.micro_batches))
            yield step

    seconds = seconds_per_step(
        model,
        optimizer,
        batches(),
        job.objective,
        compute=trainer.compute,
        max_grad_norm=job.settings.max_grad_norm,
        overhead=lambda: state_seconds,
    )
    return state_seconds / max(1, num_sentences), seconds


def seconds_per_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[StepBatch],
    objective: Objective,
    *,
    compute: Compute,
    max_grad_norm: float | None,
    overhead: Callable[[], float] = lambda: 0.0,
) -> float:
    """Return the mean seconds of the steps after the first, which is slower; 0 without batches.

    Args:
        model, optimizer: copies, whose state changes.
        overhead: returns the seconds so far that are not to be counted.
    """
    reports = train(
        model,
        batches,
        objective,
        optimizer,
        lr_at=lambda step: 0.0,  # keeps the weights finite; the time of a step does not depend on it
        compute=compute,
        max_grad_norm=max_grad_norm,
    )
    begin, count, first = time.monotonic(), 0, 0.0
    for count, _ in enumerate(reports):
        if count == 0:
            first, begin = time.monotonic() - begin - overhead(), time.monotonic() - overhead()
        elif time.monotonic() - begin > MAX_SECONDS:
            break
    return (time.monotonic() - begin - overhead()) / count if count else first
