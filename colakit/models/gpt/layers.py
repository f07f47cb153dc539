"""Layers of the transformer block: MLPs, RMSNorm, rotary positions.

Shapes: D width, d head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.kernels.llama import Rotation, rms_norm, swiglu
from colakit.kernels.matmul import Linear
from colakit.models.gpt.config import ACTIVATIONS, GPTConfig


class MLP(nn.Module):
    """GPT-2's position-wise feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner = config.mlp_width or 4 * config.width
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = Linear(config.width, inner)
        self.c_proj = Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, D)."""
        return self.c_proj(self.activation(self.c_fc(x)))


class GatedMLP(nn.Module):
    """Llama's feed-forward layer, SwiGLU with the activation `silu` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner = config.mlp_width or 4 * config.width
        self.activation = ACTIVATIONS[config.activation]
        self.gate_proj = Linear(config.width, inner, bias=config.mlp_bias)
        self.up_proj = Linear(config.width, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, D)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        gated = swiglu(gate, up) if self.activation is F.silu else self.activation(gate) * up
        return self.down_proj(gated)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` with a learnt weight."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D) for (…, D)."""
        return rms_norm(x, self.weight, self.eps)


def rotary_frequencies(config: GPTConfig) -> Tensor:
    """Return the angle of one position for each pair of dimensions, (d/2,), with the config's scaling.

    Llama 3 divides low frequencies by `rope_factor`, keeps high ones, and interpolates between.
    """
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_original_positions is None:
        return frequencies / config.rope_factor
    low, high = config.rope_low_frequency, config.rope_high_frequency
    turns = config.rope_original_positions * frequencies / (2 * math.pi)  # in the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / config.rope_factor


def rotation(frequencies: Tensor, positions: Tensor) -> Rotation:
    """Return the rotation of `positions` (…,)."""
    angles = (positions[..., None].float() * frequencies)[..., None, :]  # (…, 1, d/2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
