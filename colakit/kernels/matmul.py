"""Matrix products by the faster of torch's two CPU libraries.

On a CPU torch multiplies fp32 matrices with MKL. On non-Intel processors oneDNN, also part of torch, is
faster: a little with hundreds of rows, much with few (measured on AMD Zen 4, docs/performance.md).
`torch.backends.mkldnn.flags(enabled=False)` goes back to MKL.

Shapes: D_in and D_out of a layer, N rows (all tokens of a batch).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def prefers_onednn() -> bool:
    """Return whether this CPU multiplies fp32 matrices faster with oneDNN than with MKL."""
    maker = str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and bool(maker) and "intel" not in maker


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of products with `tensor` in the current autocast context."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def uses_onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether oneDNN computes a·bᵀ + bias; torch handles the rest, and reports wrong shapes."""
    return (
        not torch.compiler.is_compiling()
        and prefers_onednn()
        and bool(torch.backends.mkldnn.enabled)
        and a.shape[-1] == b.shape[-1]
        and all(
            tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel()
            for tensor in (a, b, bias)
            if tensor is not None
        )
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a·bᵀ + bias, (…, N), of a (…, K) and b (N, K) with any strides; no gradient."""
    if uses_onednn(a, b, bias):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


class Linear(nn.Linear):
    """Linear layer x·Wᵀ + bias by the library that `product` uses.

    With oneDNN, second derivatives raise an error.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (…, D_out) for (…, D_in)."""
        if not uses_onednn(input, self.weight, self.bias) or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Linear.apply(input, self.weight, self.bias)
        return product(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (N, D_out)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = product(rows, weight.t()).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:  # for many strided rows MKL is as fast
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias
