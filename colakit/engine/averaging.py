"""A moving average of the weights that train, which is steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's trainable parameters: a ← d·a + (1 - d)·w after each step.

    d is `decay`, and (1 + t)/(10 + t) at step t where that is less, so that the start is soon forgotten, as
    in TensorFlow's `ExponentialMovingAverage`. Averaging the iterates is Polyak and Juditsky's (1992).

    Args:
        decay: d, from 0 (no average) to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` optimizer steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights; they come back afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def state(self) -> dict[str, Tensor]:
        """Return copies on the CPU."""
        return {name: value.cpu().clone() for name, value in self.values.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned.

        Raises:
            KeyError: if a parameter is missing.
            RuntimeError: if one has another shape.
        """
        for name, value in self.values.items():
            value.copy_(saved[name])
