"""Everything that one training needs: an API function builds a `TrainJob`, a `Trainer` runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import nn

from colakit.config.training import LoopSettings
from colakit.runtime.device import Compute
from colakit.training.objectives import Objective

SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # is shown by its first 12 digits


@dataclass(kw_only=True)
class TrainJob:
    """One training.

    Attributes:
        command: name of the command, for messages and the summary.
        seed: of initial weights, batch order and dropout.
        settings: section with learning rate, batch size, schedule and intervals.
        settings_yaml: all settings of the run, written to its folder.
        origins: dotted key -> flag, variable or file that set it, written too.
        model: trained in place; already on its device.
        objective: loss of a micro-batch.
        optimizer: over the model's trainable parameters.
        max_steps: optimizer steps.
        identity: plain data that must be equal when the run is resumed.
        compute: device and arithmetic.
        cpu_kernels: the setting; with `always` a run that began without kernels is not resumed.
        graph_width: longest batch in tokens, if a step may be recorded as a CUDA graph; None if it may not
            (the objective synchronises with the device or changes during training).
        track: stores that follow the metrics, see `training.tracking`.
        lines: printed before training.
        summary: entries added to summary.json.
    """

    command: str
    seed: int
    settings: LoopSettings
    settings_yaml: str
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    max_steps: int
    identity: Mapping[str, Any]
    compute: Compute
    origins: Mapping[str, str] = field(default_factory=dict)
    cpu_kernels: str = "auto"
    graph_width: int | None = None
    track: Sequence[str] = ()
    lines: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


class JobOptions(TypedDict):
    """Fields of a `TrainJob` that do not depend on what is trained; defaults and meanings as there."""

    command: str
    seed: int
    settings_yaml: str
    origins: Mapping[str, str]
    cpu_kernels: str
    track: Sequence[str]


def settings_identity(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine a run's weights as a flat mapping `section.key` -> value."""
    return {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return the differences between two mappings as text, digests shortened; empty if they are equal."""
    differing = [key for key in sorted({*saved, *current}) if saved.get(key) != current.get(key)]
    text = "; ".join(f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in differing)
    return SHA256.sub(r"\1…", text)
