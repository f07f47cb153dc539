"""Fused operations of a CPU training step, with fewer passes over memory than torch's.

Tests compare each with its torch counterpart (`tests/kernels/test_fused.py`); `docs/performance.md` has
timings.

Shapes: D width, N rows (all tokens of a batch), R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.kernels.matmul import compute_dtype, product
from colakit.kernels.native import MAX_ELEMENTS, DropoutMask, Kernels, kernels_for

SQRT_8_OVER_PI = math.sqrt(8 / math.pi)
CHUNK_ELEMENTS = 2**16  # a few fp32 copies of so many elements fit into a core's L2 cache


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> Tensor:
    """Return x·Wᵀ + bias + scaling·(x·Aᵀ)·Bᵀ, with gradients for x, A and B only.

    The update is added to the product in place. `scaling` multiplies B, not the larger output. x is
    converted to the compute dtype once. Products with the small rank R are computed as A·xᵀ instead of x·Aᵀ;
    the other order can take several times as long in fp32.

    Args:
        x: (…, D_in).
        weight: W (D_out, D_in), frozen, in the compute dtype or fp32.
        lora_a, lora_b: A (R, D_in) and B (D_out, R).
    """
    return _LoRALinear.apply(x, weight, bias, lora_a, lora_b, scaling)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
    ) -> Tensor:
        dtype = compute_dtype(x)
        rows, weight = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)  # (N, D_in)
        with torch.autocast(x.device.type, enabled=False):
            down, up, inner = lora_inner(rows, lora_a, lora_b, scaling)
            # the same product as without an adapter: B = 0 leaves every bit of it
            y = product(rows, weight, None if bias is None else bias.to(dtype)).addmm_(inner, up)
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)  # (N, D_out)
        grad_inner, grad_a, grad_b = lora_gradients(grad, rows, inner, up, ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight.t()).addmm_(grad_inner, down).to(ctx.dtype).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def lora_inner(rows: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (R, D_in), scaling·Bᵀ (R, D_out) and rows·Aᵀ (N, R), in the dtype of `rows` (N, D_in)."""
    down, up = lora_a.to(rows.dtype), (lora_b * scaling).t().to(rows.dtype).contiguous()
    return down, up, product(down, rows).t()


def lora_gradients(
    grad: Tensor, rows: Tensor, inner: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows·Aᵀ (N, R), of A (R, D_in) and of B (D_out, R), the last two in fp32.

    Args:
        grad: of the layer's output, (N, D_out).
        rows: the layer's input, (N, D_in).
        inner, up: as returned by `lora_inner`.
    """
    grad_inner = product(up, grad).t()
    grad_a = product(grad_inner.t(), rows.t()).float()
    return grad_inner, grad_a, product(inner.t(), grad.t()).t().float() * scaling


class Dropout(torch.nn.Dropout):
    """Dropout from 16 random bits per element, several times faster on a CPU than `bernoulli_`.

    The probability is rounded to a multiple of 2⁻¹⁶; kept elements are scaled accordingly.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return `input`, with dropout in training mode."""
        return drop(input, self.p) if self.training and self.p else input

    def add_to(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + `branch`, with dropout of `branch` in training mode; fp32 like `x`, same shape."""
        if not (self.training and self.p):
            return x + branch
        plain = x.dtype != torch.float32 or x.shape != branch.shape or branch.numel() >= MAX_ELEMENTS
        if not plain and (kernels := kernels_for(branch.device, branch.dtype)) is not None:
            return _NativeAddDropped.apply(x, branch, self.p, kernels)
        return x + drop(branch, self.p)


class _NativeAddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, probability: float, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.mask = kernels, DropoutMask.draw(probability)
        return kernels.add_dropped(x.contiguous(), branch.contiguous(), ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, ctx.kernels.add_dropped_backward(grad.contiguous(), ctx.mask), None, None


def drop(x: Tensor, probability: float) -> Tensor:
    """Return `x` with elements zeroed with `probability`, the others scaled to keep the mean."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    level = round(probability * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    words = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(words, level - 2**15, out=torch.empty_like(words))  # 0 or 1; a bool converts slowly
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - level))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GPT-2's GELU, x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel, arXiv:1606.08415).

    On a CPU it is computed as the equal x·sigmoid(2y), which avoids tanh, together with its derivative, so
    that backward is one product.
    """
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    if torch.compiler.is_compiling():  # fused by the compiler, with its backward pass
        y = x.float()
        return (y * torch.sigmoid(SQRT_8_OVER_PI * (y + 0.044715 * y * y * y))).to(x.dtype)
    if (kernels := kernels_for(x.device, x.dtype)) is not None:
        return _NativeGelu.apply(x, kernels)
    return _Gelu.apply(x)


class _NativeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels) -> Tensor:
        y, derivative = kernels.gelu(x.contiguous())
        ctx.save_for_backward(derivative)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return derivative.mul_(grad), None  # in place: autograd forbids a second backward


class _Gelu(torch.autograd.Function):
    """Works on chunks that stay in the CPU cache over all passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        linear, cubic = torch.tensor(SQRT_8_OVER_PI), 0.044715 * SQRT_8_OVER_PI
        flat = x.reshape(-1)
        result = torch.empty_like(flat)
        derivative = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        for start in range(0, len(flat), CHUNK_ELEMENTS):
            chunk = slice(start, start + CHUNK_ELEMENTS)
            y = flat[chunk].float()
            squared = y * y
            sigmoid = torch.add(linear, squared, alpha=cubic).mul_(y).sigmoid_()
            result[chunk] = y * sigmoid
            if derivative is not None:  # of y·sigmoid(z(y)): sigmoid + y·z'·sigmoid·(1 - sigmoid)
                inner = torch.add(linear, squared, alpha=3 * cubic).mul_(y)
                derivative[chunk] = torch.ops.aten.sigmoid_backward(inner, sigmoid).add_(sigmoid)
        ctx.save_for_backward(derivative)
        ctx.shape = x.shape
        return result.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return grad * derivative.view(ctx.shape)
