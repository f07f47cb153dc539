"""The search space of a sweep, in the terms of Optuna."""

from __future__ import annotations

import itertools
import json
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colakit.errors import ColakitError
from colakit.utils.extras import import_extra

MAX_GRID = 100_000
Choice = str | int | float | bool | None


@dataclass(frozen=True)
class Dimension:
    """One setting of the search space: choices, or a range.

    Attributes:
        key: dotted key of the setting.
        choices: empty for a range.
        step: None takes any value of a range.
        is_integer: whether the values of a range are whole numbers.
    """

    key: str
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    is_integer: bool = False

    def suggest(self, trial: Any) -> None:
        """Let an Optuna trial sample this setting."""
        if self.choices:
            trial.suggest_categorical(self.key, self.choices)
        elif self.is_integer:
            step = int(self.step or 1)
            trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        else:
            trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def values(self) -> tuple[Choice, ...]:
        """Return all values, for a grid.

        Raises:
            ColakitError: if there are infinitely many.
        """
        if self.choices:
            return self.choices
        step = self.step or (1 if self.is_integer else None)
        if step is None:
            raise ColakitError(
                f"sweep.space: {self.key} is a range without a step; a grid needs its values",
                hint="Add a step, list choices, or set sweep.sampler to random or tpe.",
            )
        count = int((self.high - self.low) / step + 1e-9) + 1
        values = (round(self.low + number * step, 12) for number in range(min(count, MAX_GRID + 1)))
        return tuple(int(value) if self.is_integer else value for value in values)

    def describe(self) -> str:
        """Return the values, in words."""
        if self.choices:
            return ", ".join(map(as_text, self.choices))
        details = [f"step {self.step:g}"] if self.step else []
        return ", ".join([f"{self.low:g} to {self.high:g}", *details, *(["log"] if self.log else [])])


def as_choice(value: Any) -> Choice:
    """Return a choice that Optuna can store; lists and mappings become text that `--set` reads."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


def as_text(value: Choice) -> str:
    """Return a value for people, with few digits."""
    return f"{value:.4g}" if isinstance(value, float) else as_value(value)


def as_value(value: Choice) -> str:
    """Return a value with all its digits, as `--set` reads it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def grid_of(space: Sequence[Dimension], seed: int) -> list[dict[str, Choice]]:
    """Return all combinations, in random order.

    Raises:
        ColakitError: if there are too many, or infinitely many.
    """
    values = [dimension.values() for dimension in space]
    if (count := math.prod(map(len, values))) > MAX_GRID:
        raise ColakitError(
            f"sweep.space: the grid has {count:,} combinations; at most {MAX_GRID:,} are allowed",
            hint="Set sweep.sampler to random or tpe.",
        )
    keys = [dimension.key for dimension in space]
    grid = [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*values)]
    random.Random(seed).shuffle(grid)
    return grid


def make_sampler(name: str, space: Sequence[Dimension], seed: int, index: int) -> Any:
    """Return the sampler of the trial with this index.

    Each trial has a sampler of its own seed, so that a resumed sweep goes on as an uninterrupted one.
    """
    samplers = import_extra("optuna.samplers", "sweep")
    if name == "tpe":
        return samplers.TPESampler(seed=seed + index, constant_liar=True)
    sampler = samplers.RandomSampler(seed=seed + index)
    if name == "random":
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an experimental class
        return samplers.PartialFixedSampler(grid_of(space, seed)[index], sampler)


def make_pruner(name: str) -> Any:
    """Return the pruner of a setting."""
    pruners = import_extra("optuna.pruners", "sweep")
    makers = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "asha": lambda: pruners.SuccessiveHalvingPruner(min_resource=1),
    }
    return makers[name]()
