"""Random number generators of a run: seed, save, restore."""

from __future__ import annotations

from typing import Any

import torch

RANK_STRIDE = 1_000_003  # different dropout in each process


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed torch on every device; batch order uses separate numpy generators."""
    torch.manual_seed(seed + RANK_STRIDE * rank)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators on the CPU and `device`."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Restore the states of `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
