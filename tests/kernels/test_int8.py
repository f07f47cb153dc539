"""Layers with int8 weights: close to the original, the same with and without kernels, and trained through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from colakit.errors import ColakitError
from colakit.kernels.int8 import Int8Linear, quantize_rows, rescale, rotate, unrotate
from colakit.kernels.matmul import Linear
from colakit.kernels.native import Kernels, find_compiler
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, lora_layers, merge_and_unload
from colakit.runtime.device import Compute

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
CPU = torch.device("cpu")
LLAMA = GPTConfig(
    vocab_size=50, num_positions=16, width=48, num_layers=2, num_heads=4, num_kv_heads=2, family="llama",
    activation="silu", norm_epsilon=1e-5,
)  # fmt: skip
GPT2 = GPTConfig(vocab_size=50, num_positions=16, width=48, num_layers=2, num_heads=4)


def layer_with_outliers(inputs: int, outputs: int) -> tuple[Linear, Tensor]:
    """A layer, and rows of which one column is a hundred times larger than the others."""
    torch.manual_seed(inputs)
    layer, x = Linear(inputs, outputs), torch.randn(40, inputs)
    x[:, inputs // 3] *= 100
    return layer.requires_grad_(False), x


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_a_rotation_can_be_undone_and_keeps_products(size: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 192), torch.randn(5, 192)
    assert_close(unrotate(rotate(x, size), size), x)
    assert_close(rotate(x, size) @ rotate(weight, size).t(), x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 7), (96, 33), (576, 64), (5, 3)])
def test_values_and_gradients_are_close_to_the_dense_layers(inputs: int, outputs: int) -> None:
    layer, x = layer_with_outliers(inputs, outputs)
    quantized, leaf = Int8Linear(layer), x.clone().requires_grad_()
    y, grad = quantized(leaf), torch.randn(40, outputs)
    assert relative_error(quantized.weight, layer.weight) < 0.01
    assert relative_error(y.detach(), layer(x)) < 0.03
    (actual,) = torch.autograd.grad(y, leaf, grad)
    assert relative_error(actual, grad @ layer.weight) < 0.03


def test_without_the_rotation_outliers_cost_precision() -> None:
    _, x = layer_with_outliers(576, 64)
    small = x.clone()
    small[:, 576 // 3] = 0
    errors = []
    for size in (1, 64):
        integers, scales = quantize_rows(x, None, size, None)
        restored = unrotate(integers * scales[:, None], size)
        restored[:, 576 // 3] = 0
        errors.append(relative_error(restored, small))
    assert errors[1] < errors[0] / 5


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 4, 1, 0), (37, 192, 64, 8), (3, 96, 32, 5), (8, 96, 2, 4)])
def test_the_kernels_compute_what_torch_does(
    dtype: torch.dtype, shape: tuple[int, int, int, int], tmp_path: Path
) -> None:
    rows, width, rotation, rank = shape
    kernels = Compute(CPU, dtype, "").with_kernels("always", tmp_path).kernels
    assert isinstance(kernels, Kernels)
    torch.manual_seed(rows)
    x, columns, bias = torch.randn(rows, width).to(dtype), torch.rand(width), torch.randn(width)
    for factors in (columns, None):
        one, scales = quantize_rows(x, factors, rotation, kernels)
        two, plain_scales = quantize_rows(x, factors, rotation, None)
        assert_close(scales, plain_scales)
        assert (one.int() - two.int()).abs().max() <= 1
    sums = torch.randint(-(10**6), 10**6, (rows, width), dtype=torch.int32)
    inner, up = (torch.randn(rows, rank), torch.randn(rank, width)) if rank else (None, None)
    parts = (sums, scales, columns, rotation, bias, inner, up, dtype)
    actual, expected = (rescale(*parts, how).float() for how in (kernels, None))
    assert relative_error(actual, expected) < (1e-5 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_an_adapter_on_an_int8_base_learns_as_on_the_base_itself(config: GPTConfig) -> None:
    gradients = []
    for int8 in (False, True):
        torch.manual_seed(0)
        model = GPT(config).classifier(2)
        inject(model, LoRAConfig(rank=4))
        for _, layer in lora_layers(model):
            torch.nn.init.normal_(layer.lora_b, std=0.02)
        compute = Compute(CPU, torch.float32, "", int8=int8)
        compute.place(model).eval()
        assert all(isinstance(layer.base, Int8Linear) == int8 for _, layer in lora_layers(model))
        with compute.autocast():
            logits = model(torch.arange(30).view(3, 10), torch.ones(3, 10, dtype=torch.int64))
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_state_of_an_int8_model_is_that_of_a_dense_one(config: GPTConfig) -> None:
    torch.manual_seed(0)
    dense, quantized = (GPT(config).classifier(2).requires_grad_(False) for _ in range(2))
    shapes = {name: tensor.shape for name, tensor in quantized.state_dict().items()}
    Compute(CPU, torch.float32, "", int8=True).place(quantized)
    state = quantized.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == shapes
    dense.load_state_dict(state)
    sentences = torch.arange(30).view(3, 10), torch.ones(3, 10, dtype=torch.int64)
    one, two = (model.eval()(*sentences) for model in (dense, quantized))
    assert_close(one, two, rtol=0, atol=0.02 * float(one.abs().max()))


def test_merging_makes_the_base_dense() -> None:
    torch.manual_seed(0)
    model = GPT(GPT2)
    inject(model, LoRAConfig(rank=2))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_b)
    Compute(CPU, torch.float32, "", int8=True).place(model)
    expected = {name: layer.merged_weight() for name, layer in lora_layers(model)}
    merge_and_unload(model)
    for name, weight in expected.items():
        merged = model.get_submodule(name)
        assert isinstance(merged, torch.nn.Linear)
        assert torch.equal(merged.weight, weight)


def test_weights_that_train_are_refused() -> None:
    with pytest.raises(ColakitError, match="all linear layers train"):
        Compute(CPU, torch.float32, "", int8=True).place(GPT(GPT2))
