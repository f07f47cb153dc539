"""Matrix products by the library that is sooner done with them.

On a CPU torch multiplies fp32 matrices with Intel's MKL. On processors of other makers oneDNN, which torch
brings along as well, is sooner done, a little with hundreds of rows and much with few, as was measured on
AMD's Zen 4 (docs/performance.md). `torch.backends.mkldnn.flags(enabled=False)` leaves them to MKL.

Shapes: D_in and D_out of a layer, N rows: all tokens of a batch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def has_sooner_onednn() -> bool:
    """Tell whether oneDNN is to multiply fp32 matrices on this CPU, where torch would let MKL."""
    maker = str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and bool(maker) and "intel" not in maker


def by_onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Tell whether a·bᵀ + bias is oneDNN's to compute; what does not fit is torch's, to complain of."""
    return (
        not torch.compiler.is_compiling()
        and has_sooner_onednn()
        and bool(torch.backends.mkldnn.enabled)
        and a.shape[-1] == b.shape[-1]
        and all(
            tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel()
            for tensor in (a, b, bias)
            if tensor is not None
        )
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a·bᵀ, (M, N), without a gradient, of a (M, K) and b (N, K), however they lie in memory."""
    return _onednn(a, b, None) if by_onednn(a, b) else a @ b.t()


class Linear(nn.Linear):
    """A linear layer, x·Wᵀ + bias, whose products are taken as `product` takes them.

    Where they are oneDNN's, gradients of gradients are an error.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (…, D_out) for (…, D_in)."""
        if not by_onednn(input, self.weight, self.bias) or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Linear.apply(input, self.weight, self.bias)
        return _onednn(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (N, D_out)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = product(rows, weight.t()).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:  # of many rows that lie across memory, MKL's is as soon done
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x·Wᵀ + bias, (…, D_out)."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
