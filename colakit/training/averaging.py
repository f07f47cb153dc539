"""Averages of weights: EMA during a run, and the average of a run's first and last weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


class StartAverage:
    """Average of the initial weights s and the current weights w: share·s + (1 - share)·w.

    Source: "WiSE-FT", Wortsman et al. 2022 (arXiv:2109.01903).

    Args:
        model: before training.
        share: weight of s, 0 to 1; 0 disables the average.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self.parameters = list(model.parameters()) if share else []
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def applied(self) -> AbstractContextManager[None]:
        """Replace the weights by the average; they are restored on exit, bit for bit."""
        current = (parameter.data for parameter in self.parameters)
        average = [torch.lerp(w, s, self.share) for w, s in zip(current, self.start, strict=True)]
        return _replaced(self.parameters, average)


class EMA:
    """Exponential moving average of the trainable parameters: a ← d·a + (1 - d)·w after each step.

    d is min(`decay`, (1 + t)/(10 + t)) at step t, as in TensorFlow's `ExponentialMovingAverage`.

    Args:
        decay: 0 to below 1; None disables EMA.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = {} if decay is None else trainable
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after `step` optimizer steps."""
        if self.decay is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1 - decay)

    def applied(self) -> AbstractContextManager[None]:
        """Replace the weights by the average, if enabled; they are restored on exit."""
        return _replaced(self.parameters.values(), self.values.values())

    def state(self) -> dict[str, Tensor]:
        """Return copies on the CPU."""
        return {name: value.cpu().clone() for name, value in self.values.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            KeyError: if a parameter is missing.
            RuntimeError: if a shape differs.
        """
        for name, value in self.values.items():
            value.copy_(saved[name])


@contextmanager
def _replaced(parameters: Collection[nn.Parameter], values: Collection[Tensor]) -> Iterator[None]:
    """Replace the data of parameters; restore the same tensors on exit."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value
