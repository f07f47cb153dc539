"""RMSNorm, rotary positions and SwiGLU in C equal torch's, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from colakit.kernels.llama import rms_norm, rotate_heads, swiglu
from colakit.kernels.native import Kernels, find_compiler
from colakit.models.gpt.layers import rotation
from colakit.runtime.device import Compute

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def compute(request: pytest.FixtureRequest, fp32: Compute, tmp_path: Path) -> Compute:
    """The CPU with kernels, in fp32 or bf16."""
    return Compute(fp32.device, request.param, "").with_kernels("always", tmp_path)


def compare(compute: Compute, function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare values and gradients with and without kernels; the latter on the same numbers in fp64."""

    def differentiate(leaves: list[Tensor]) -> list[Tensor]:
        y = function(*leaves)
        torch.manual_seed(1)
        grad = torch.randn(y.shape).to(compute.dtype)
        return [y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    with compute.autocast():
        assert isinstance(compute.kernels, Kernels)
        actual = differentiate([x.clone().requires_grad_() for x in inputs])
    assert actual[0].dtype == compute.dtype
    expected = differentiate([x.double().requires_grad_() for x in inputs])
    for one, two in zip(actual, expected, strict=True):
        assert_close(one.double(), two.double(), **TOLERANCE[compute.dtype])


@pytest.mark.parametrize("shape", [(1, 8), (67, 96), (2, 33, 40)])
def test_rms_norm(shape: tuple[int, ...], compute: Compute) -> None:
    torch.manual_seed(0)
    x, weight = 3 * torch.randn(shape), torch.randn(shape[-1])

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return rms_norm(x, weight, 1e-3)
        return x * weight * (x.square().mean(dim=-1, keepdim=True) + 1e-3).rsqrt()

    compare(compute, norm, x, weight)


@pytest.mark.parametrize(("heads", "shared", "width"), [(9, 3, 64), (4, 4, 8), (4, 1, 128)])
@pytest.mark.parametrize("outer", [(7,), (3, 7)], ids=["packed", "padded"])
def test_rotary_positions(
    heads: int, shared: int, width: int, outer: tuple[int, ...], compute: Compute
) -> None:
    torch.manual_seed(0)
    shapes = [(*outer, count, width) for count in (heads, shared, shared)]
    angles = rotation(torch.rand(width // 2), torch.arange(7))
    compare(
        compute,
        lambda q, k, v: rotate_heads(q, k, v, angles),
        *(torch.randn(shape).to(compute.dtype) for shape in shapes),
    )


def test_swiglu(compute: Compute) -> None:
    torch.manual_seed(0)
    gate, up = (4 * torch.randn(2, 5, 24).to(compute.dtype) for _ in range(2))
    gate[0, 0, :4] = torch.tensor([-200.0, -30.0, 30.0, 200.0])
    compare(compute, swiglu, gate, up)


def test_inputs_that_are_not_contiguous_are_read_in_order(compute: Compute) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 24, 5).to(compute.dtype).transpose(1, 2).chunk(2)
    compare(compute, swiglu, gate, up)
    heads = torch.randn(5, 8, 9).to(compute.dtype).transpose(1, 2)  # (5, 9, 8)
    angles = rotation(torch.rand(4), torch.arange(5))
    compare(compute, lambda q, k, v: rotate_heads(q, k, v, angles), heads, heads[:, :3], heads[:, 3:6])
