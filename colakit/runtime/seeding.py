"""The random number generators of a run: seeding, saving, restoring."""

from __future__ import annotations

from typing import Any

import torch

RANK_STRIDE = 1_000_003  # keeps the dropout streams of parallel processes apart


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed torch on every device; numpy's order of batches has generators of its own."""
    torch.manual_seed(seed + RANK_STRIDE * rank)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the generators that training draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to a saved state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
