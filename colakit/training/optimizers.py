"""Optimizers: AdamW; for pre-training also Muon on the blocks' matrices with AdamW on all other weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from colakit.models.gpt.model import GPT


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step as one.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by
    approximately the nearest matrix with all singular values 1. It trains the matrices of the blocks. AdamW
    trains embeddings, norms and biases.

    Args:
        matrices: parameters that Muon trains.
        groups: parameter groups of AdamW.
        muon_lr: rate of Muon, times √max(1, rows/columns).
        lr: rate of AdamW.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        *,
        muon_lr: float,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay),
            torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True),
        )
        super().__init__([{"params": [*matrices]}, *({"params": [*group["params"]]} for group in groups)], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """List the parts' own groups, so that a rate set in `param_groups` is the rate of the part."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `copy.deepcopy`; torch's own method leaves out `parts`."""
        return {**super().__getstate__(), "parts": self.parts}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with both optimizers."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def tuning_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, loraplus_lr_ratio: float
) -> torch.optim.AdamW:
    """Return AdamW for the parameters that train; the arguments are those of `parameter_groups`."""
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, loraplus_lr_ratio=loraplus_lr_ratio)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, fused=devices <= {"cpu", "cuda"})


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, loraplus_lr_ratio: float
) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay on matrices alone, B and vectors at the LoRA+ rate.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) trains B at `lr * loraplus_lr_ratio`. As in PEFT's
    `create_loraplus_optimizer`, so are vectors.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fast = name.endswith("lora_b") or parameter.ndim == 1
        key = (lr * loraplus_lr_ratio if fast else lr, weight_decay if parameter.ndim > 1 else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def pretraining_optimizer(
    model: GPT, name: str, *, lr: float, muon_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer of a language model that trains from scratch.

    Args:
        name: `muon` or `adamw`.
        lr: peak rate of AdamW.
        muon_lr: peak rate of Muon.
        weight_decay: of matrices; embeddings do not decay under Muon, vectors never.
    """
    matrices = [p for block in model.body.blocks for p in block.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    embeddings = [p for p in model.parameters() if p.ndim == 2 and id(p) not in chosen]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    if name == "adamw":
        groups = [
            {"params": [*matrices, *embeddings], "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    rest: list[dict[str, Any]] = [{"params": [*embeddings, *vectors], "weight_decay": 0.0}]
    return MuonWithAdamW(matrices, rest, muon_lr=muon_lr, lr=lr, weight_decay=weight_decay)
