"""RMSNorm, rotary positions and SwiGLU of the Llama family; in training on a CPU each is one C kernel.

Shapes: N rows (all tokens of a batch), D width, H query heads, K heads of keys and values, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.kernels.native import MAX_HEAD_WIDTH, Kernels, kernels_for, pointers

BLOCK_ROWS = 32  # as in llama.c
Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles of some positions, each (…, 1, d), fp32."""


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x·weight/√(mean(x²) + epsilon) (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        x: (…, D).
        weight: (D,).

    Returns:
        (…, D), computed in fp32; in the kernels' dtype if they compute it, else fp32.
    """
    kernels = kernels_for(x.device) if x.dtype == weight.dtype == torch.float32 else None
    if kernels is None:
        return F.rms_norm(x.float(), weight.shape, weight, epsilon)
    return _RMSNorm.apply(x, weight, epsilon, kernels)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kernels: Kernels) -> Tensor:
        x, y = x.contiguous(), torch.empty(x.shape, dtype=kernels.dtype)
        scales = torch.empty(x.shape[:-1])
        counts = (scales.numel(), x.shape[-1], epsilon, torch.get_num_threads())
        kernels.library.rms_norm(*pointers(x, weight, y, scales), *counts)
        ctx.save_for_backward(x, weight, scales)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        rows, width = scales.numel(), x.shape[-1]
        grad_x, sums = torch.empty_like(x), torch.empty(-(-rows // BLOCK_ROWS), width)
        grad = grad.contiguous()
        tensors = pointers(x, weight, scales, grad, grad_x, sums)
        ctx.kernels.library.rms_norm_backward(*tensors, rows, width, torch.get_num_threads())
        return grad_x, sums.sum(dim=0) if ctx.needs_input_grad[1] else None, None, None


def rotate(x: Tensor, rotation: Rotation, dtype: torch.dtype) -> Tensor:
    """Return `x` (…, H, d) rotated: dimensions i and i + d/2 are a pair, as in transformers."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(dtype)


def rotate_heads(queries: Tensor, keys: Tensor, values: Tensor, rotation: Rotation) -> Tensor:
    """Return queries and keys rotated, and values: (…, 3, H, d) in the dtype of `values`.

    Args:
        queries: (…, H, d).
        keys, values: (…, K, d); H/K query heads share one.
        rotation: of all tokens, or of those of one sentence (T,) for padded sentences (B, T).
    """
    dtype, (heads, width) = values.dtype, queries.shape[-2:]
    kernels = kernels_for(values.device, dtype)
    if kernels is not None and width <= MAX_HEAD_WIDTH and width % 2 == 0:
        return _RotateHeads.apply(queries.to(dtype), keys.to(dtype), values, *rotation, kernels)
    group = heads // values.shape[-2]
    rotated = [rotate(queries, rotation, dtype)]
    rotated += [part.repeat_interleave(group, -2) for part in (rotate(keys, rotation, dtype), values)]
    return torch.stack(rotated, dim=-3)


class _RotateHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, kernels: Kernels
    ) -> Tensor:
        (*outer, heads, width), shared_heads = queries.shape, keys.shape[-2]
        cos, sin = (part.expand(*outer, 1, width).contiguous() for part in (cos, sin))
        qkv = queries.new_empty(*outer, 3, heads, width)
        counts = (qkv.numel() // (3 * heads * width), heads, shared_heads, width, torch.get_num_threads())
        inputs = [part.contiguous() for part in (queries, keys, values)]
        kernels.library.rotate_heads(*pointers(*inputs, cos, sin, qkv), *counts)
        ctx.save_for_backward(cos, sin)
        ctx.kernels, ctx.counts, ctx.shapes = kernels, counts, (queries.shape, keys.shape, values.shape)
        return qkv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad, grads = grad.contiguous(), [grad.new_empty(shape) for shape in ctx.shapes]
        tensors = pointers(grad, *ctx.saved_tensors, *grads)
        ctx.kernels.library.rotate_heads_backward(*tensors, *ctx.counts)
        return *grads, None, None, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate)·up (Shazeer 2020, arXiv:2002.05202); all of one shape."""
    kernels = kernels_for(gate.device, gate.dtype) if gate.dtype == up.dtype else None
    return F.silu(gate) * up if kernels is None else _SwiGLU.apply(gate, up, kernels)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: Kernels) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        kernels.library.swiglu(*pointers(gate, up, y), y.numel(), torch.get_num_threads())
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad, grad_gate, grad_up = grad.contiguous(), torch.empty_like(gate), torch.empty_like(up)
        tensors = pointers(gate, up, grad, grad_gate, grad_up)
        ctx.kernels.library.swiglu_backward(*tensors, gate.numel(), torch.get_num_threads())
        return grad_gate, grad_up, None
