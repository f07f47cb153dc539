"""Low-rank products of many adapters, each for rows of its own.

Shapes: N rows (the tokens of packed sentences), D_in and D_out of a linear layer, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colakit.kernels.native import LowRankGroup, kernels_for


def add_low_rank(x: Tensor, y: Tensor, groups: Sequence[LowRankGroup]) -> None:
    """Add (x·downᵀ)·up to the rows of each group in y, in place.

    One call of the C kernel computes all groups. torch needs two calls for each group, and in bf16 on a CPU a
    call with few rows takes longer than its product.

    Args:
        x: (N, D_in).
        y: (N, D_out), of the same dtype.
    """
    kernels = kernels_for(x.device, x.dtype)
    shape = (max(len(down) for down, *_ in groups), x.shape[1], y.shape[1])
    if kernels is not None and kernels.supports_low_rank(*shape) and y.dtype == x.dtype:
        kernels.add_low_rank(x.contiguous(), y, groups)
        return
    with torch.autocast(x.device.type, enabled=False):
        for down, up, start, stop in groups:
            # A·xᵀ is faster than x·Aᵀ for a small rank
            y[start:stop].addmm_((down @ x[start:stop].t()).t(), up)
