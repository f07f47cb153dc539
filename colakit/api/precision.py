"""Which precision `finetune --precision auto` uses on a CPU: int8 where it was measured to be faster."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from colakit import __version__
from colakit.api.session import Session
from colakit.kernels.native import processor
from colakit.models.gpt.config import GPTConfig
from colakit.runtime.device import int8_speedup
from colakit.runtime.distributed import local_rank
from colakit.storage.gpt2 import local_base, plan_config, resolve_base

MIN_WIDTH = 512  # of a base; in narrower ones less than half of a step is products
MIN_SPEEDUP = (
    1.3  # of a frozen layer; quantising and rescaling are included, the rest of a step gains nothing
)


class Int8Choice(NamedTuple):
    """Whether `auto` is int8 for adapters on a base, and why."""

    chosen: bool
    reason: str


def int8_choice(session: Session, config: GPTConfig) -> Int8Choice:
    """Measure int8 at the shape of a base, once on a machine, and decide; a dry run stores no measurement."""
    if config.width < MIN_WIDTH:
        return Int8Choice(False, f"the base has a width of {config.width}, less than {MIN_WIDTH}")
    compute, shape = session.gpt_training_compute, (config.width, config.mlp_width or 4 * config.width)
    key = {
        "processor": processor(),
        "torch": torch.__version__,
        "colakit": __version__,
        "shape": shape,
        "arithmetic": compute.arithmetic,
    }
    measured = session.arrays.get(
        "int8-speedup", key, lambda: {"speedup": np.array(int8_speedup(compute, shape))}
    )
    speedup = float(measured["speedup"])
    dtype = str(compute.dtype).removeprefix("torch.")
    reason = f"measured {speedup:.2f} times the speed of {dtype} in a frozen layer of {shape[0]} x {shape[1]}"
    if speedup < MIN_SPEEDUP:
        return Int8Choice(False, f"{reason}, less than {MIN_SPEEDUP}")
    return Int8Choice(True, reason)


def with_measured_precision(session: Session) -> Session:
    """Return the session of a fine-tuning with `precision: int8`, if that is what `auto` chooses.

    The run then records int8, so that its settings give the same run on any machine. Only adapters trained by
    one process on a CPU are considered.
    """
    settings = session.settings
    trains_adapters = settings.finetune.method == "lora" and not settings.finetune.from_scratch
    if settings.precision != "auto" or not trains_adapters or local_rank() is not None:
        return session
    if session.compute.device.type != "cpu":
        return session
    if local_base(settings.base) is None and not session.dry_run:
        session.load_corpus(before_fetch=lambda: resolve_base(settings.base))  # its errors before a download
        resolve_base(settings.base)
    choice = int8_choice(session, plan_config(settings.base))
    return session.with_precision("int8", choice.reason) if choice.chosen else session
