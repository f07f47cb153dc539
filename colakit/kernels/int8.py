"""Linear layers with frozen int8 weights, trained through and adapted.

A weight has one scale per output row. Inputs are quantised as they come, with one scale per row. A few
columns of a transformer's activations are many times larger than the others, and would leave them a few
levels. So inputs and weights are rotated, every S columns by a Hadamard matrix, which spreads such columns
and keeps the product: x·Wᵀ = (x·H)·(W·H)ᵀ (Ashkboos et al. 2024, arXiv:2404.00456, §3). In the backward pass
the weight's scales move to the gradient, so that both passes multiply by the same integers.

Shapes: D_in and D_out of a layer, N rows (all tokens of a batch), R rank of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from colakit.kernels.fused import lora_gradients, lora_inner
from colakit.kernels.matmul import Linear, compute_dtype
from colakit.kernels.native import Kernels, kernels_for, pointers

LARGEST = 127
SMALLEST = 1e-30  # of a row's maximum
MAX_WIDTH = 16384  # of a row, as in int8.c
MAX_ROTATION = 64  # columns


class Int8Linear(nn.Module):
    """A frozen linear layer x·Wᵀ + bias with W = (integers·scales)·H.

    Its state dict is that of a dense layer with these weights, in the dtype of the original.

    Args:
        layer: the layer to quantise.
    """

    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        self.rotation = min(layer.in_features & -layer.in_features, MAX_ROTATION)  # S, divides D_in
        weight = rotate(layer.weight.detach().float(), self.rotation)
        scales = weight.abs().amax(dim=1).clamp_min_(SMALLEST) / LARGEST
        self.integers = nn.Parameter((weight / scales[:, None]).round_().to(torch.int8), requires_grad=False)
        self.register_buffer("scales", scales, persistent=False)  # (D_out,)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """A copy of W, (D_out, D_in) fp32."""
        return unrotate(self.integers.float() * self.scales[:, None], self.rotation)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight.to(self.dtype)
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def dense(self) -> Linear:
        """Return a layer with W in fp32."""
        layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight, requires_grad=False)
        layer.bias = self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D_out) for (…, D_in), in the compute dtype."""
        return self.adapted(x, None, None, 1.0)

    def adapted(self, x: Tensor, lora_a: Tensor | None, lora_b: Tensor | None, scaling: float) -> Tensor:
        """Return x·Wᵀ + bias + scaling·(x·Aᵀ)·Bᵀ, with gradients for x, A and B only.

        Args:
            x: (…, D_in).
            lora_a, lora_b: A (R, D_in) and B (D_out, R), or None without an update.
        """
        dtype = compute_dtype(x)
        fits = max(self.in_features, self.out_features) <= MAX_WIDTH
        kernels = kernels_for(x.device, dtype) if fits else None
        return _Int8Linear.apply(x, self, lora_a, lora_b, scaling, dtype, kernels)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Int8Linear,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scaling: float,
        dtype: torch.dtype,
        kernels: Kernels | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype).contiguous()  # (N, D_in)
        down = up = inner = None
        with torch.autocast("cpu", enabled=False):
            if lora_a is not None and lora_b is not None:
                down, up, inner = lora_inner(rows, lora_a, lora_b, scaling)
            quantized, row_scales = quantize_rows(rows, None, layer.rotation, kernels)
            sums = torch._int_mm(quantized, layer.integers.t())
            y = rescale(sums, row_scales, layer.scales, 1, layer.bias, inner, up, dtype, kernels)
        ctx.save_for_backward(rows, inner, down, up)
        ctx.layer, ctx.scaling, ctx.shape, ctx.dtype, ctx.kernels = layer, scaling, x.shape, x.dtype, kernels
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up = ctx.saved_tensors
        layer, kernels = ctx.layer, ctx.kernels
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype).contiguous()  # (N, D_out)
        grad_inner = grad_a = grad_b = grad_x = None
        if up is not None:
            grad_inner, grad_a, grad_b = lora_gradients(grad, rows, inner, up, ctx.scaling)
        if ctx.needs_input_grad[0]:
            quantized, row_scales = quantize_rows(grad, layer.scales, 1, kernels)
            sums = torch._int_mm(quantized, layer.integers)
            grad_x = rescale(
                sums, row_scales, None, layer.rotation, None, grad_inner, down, rows.dtype, kernels
            )
            grad_x = grad_x.to(ctx.dtype).view(ctx.shape)
        return grad_x, None, grad_a, grad_b, None, None, None


def rotate(x: Tensor, size: int) -> Tensor:
    """Return `x` (…, D) with every `size` columns multiplied by the Hadamard matrix of that size, /√size.

    They are those at distances of D/size, and neighbours in the result.
    """
    y = x
    for _ in range(size.bit_length() - 1):
        one, other = y.chunk(2, dim=-1)
        y = torch.stack([one + other, one - other], dim=-1).flatten(-2)
    return y / size**0.5


def unrotate(x: Tensor, size: int) -> Tensor:
    """Undo `rotate`."""
    y = x
    for _ in range(size.bit_length() - 1):
        one, other = y[..., ::2], y[..., 1::2]
        y = torch.cat([one + other, one - other], dim=-1)
    return y / size**0.5


def quantize_rows(
    x: Tensor, columns: Tensor | None, rotation: int, kernels: Kernels | None
) -> tuple[Tensor, Tensor]:
    """Return x·columns, rotated, as int8 (N, D), and the scale of each row (N,) fp32.

    Args:
        x: (N, D), contiguous.
        columns: (D,) fp32, or None.
        rotation: columns of a rotation; 1 for none.
    """
    if kernels is None:
        scaled = rotate(x.float() if columns is None else x.float() * columns, rotation)
        scales = scaled.abs().amax(dim=1).clamp_min_(SMALLEST) / LARGEST
        return (scaled * (1 / scales)[:, None]).round_().to(torch.int8), scales
    quantized, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    tensors = pointers(x, columns, quantized, scales)
    kernels.library.quantize_rows(*tensors, *x.shape, rotation, torch.get_num_threads())
    return quantized, scales


def rescale(
    sums: Tensor,
    scales: Tensor,
    columns: Tensor | None,
    rotation: int,
    bias: Tensor | None,
    inner: Tensor | None,
    up: Tensor | None,
    dtype: torch.dtype,
    kernels: Kernels | None,
) -> Tensor:
    """Return sums·scales·columns, unrotated, + bias + inner·up: (N, D) in `dtype`.

    Args:
        sums: integer product (N, D).
        scales: of its rows, (N,).
        columns, bias: (D,), or None.
        rotation: columns of a rotation; 1 for none.
        inner, up: (N, R) and (R, D), or None.
    """
    bias = None if bias is None else bias.float()
    if kernels is None:
        y = sums * scales[:, None]
        y = unrotate(y if columns is None else y * columns, rotation)
        y = y if bias is None else y + bias
        return (y if inner is None or up is None else y.addmm_(inner.float(), up.float())).to(dtype)
    y, rank = torch.empty(sums.shape, dtype=dtype), 0
    if inner is not None and up is not None:
        inner, up, rank = inner.float().contiguous(), up.float().contiguous(), len(up)
    tensors = pointers(sums, scales, columns, bias, inner, up, y)
    kernels.library.rescale(*tensors, *sums.shape, rank, rotation, torch.get_num_threads())
    return y
