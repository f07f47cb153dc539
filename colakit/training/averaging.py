"""Averages of weights: along a run, steadier than any one step's, and of a run's start and end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


class StartAverage:
    """Weights between those that training began with, s, and those of now, w: share·s + (1 - share)·w.

    Training on goes where it is sent and forgets what it does not read; between start and end, both are known
    ("WiSE-FT", Wortsman et al. 2022, arXiv:2109.01903). It asks that no barrier lies between the two, as
    where the second grew out of the first at moderate rates.

    Args:
        model: as it is before training.
        share: of the start, from 0 (none of it is kept) to 1.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self.parameters = list(model.parameters()) if share else []
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def in_place(self) -> AbstractContextManager[None]:
        """Put the average in the place of the weights; they come back afterwards, bit for bit."""
        now = (parameter.data for parameter in self.parameters)
        average = [torch.lerp(w, s, self.share) for w, s in zip(now, self.start, strict=True)]
        return _in_place(self.parameters, average)


class EMA:
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

    def in_place(self) -> AbstractContextManager[None]:
        """Put the average in the place of the weights; they come back afterwards."""
        return _in_place(self.parameters.values(), self.values.values())

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


@contextmanager
def _in_place(parameters: Collection[nn.Parameter], values: Collection[Tensor]) -> Iterator[None]:
    """Let parameters have these values; their own come back afterwards, the very tensors."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value
