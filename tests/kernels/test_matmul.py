"""oneDNN's products equal torch's own, values and gradients, and are taken where they are sooner done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from colakit.kernels import matmul as products
from colakit.kernels.matmul import Linear, prefers_onednn, product, uses_onednn

TIGHT = {"rtol": 1e-5, "atol": 1e-5}  # fp32; sums are taken in another order
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch is without oneDNN"
)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let oneDNN multiply, whatever the processor."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)


@pytest.fixture
def fresh_decision() -> Iterator[None]:
    prefers_onednn.cache_clear()
    yield
    prefers_onednn.cache_clear()


@needs_onednn
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.usefixtures("onednn")
def test_both_libraries_give_the_same_product(rows: int, turned: bool) -> None:
    torch.manual_seed(rows)
    a, b = torch.randn(rows, 40), torch.randn(24, 40)
    if turned:
        a, b = torch.randn(40, rows).t(), torch.randn(40, 24).t()
    assert uses_onednn(a, b)
    assert_close(product(a, b), a @ b.t(), **TIGHT)


@needs_onednn
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (1, 16)])
@pytest.mark.usefixtures("onednn")
def test_a_layer_and_its_gradients_equal_those_of_torch(
    frozen: bool, bias: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = Linear(16, 24, bias=bias)
    layer.weight.requires_grad_(not frozen)
    x = torch.randn(*shape, requires_grad=True)
    leaves = [leaf for leaf in (x, layer.weight, layer.bias) if leaf is not None and leaf.requires_grad]

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y.square().sum(), leaves)

    found, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert type(found.grad_fn).__name__ == "_LinearBackward"
    assert_close(found, expected, **TIGHT)
    for one, two in zip(gradients(found), gradients(expected), strict=True):
        assert_close(one, two, **TIGHT)
    with torch.inference_mode():
        assert_close(layer(x), expected.detach(), **TIGHT)


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's, of the switch
@pytest.mark.usefixtures("onednn")
def test_torch_computes_other_dtypes_and_devices() -> None:
    layer = Linear(16, 8)
    assert not uses_onednn(torch.zeros(2, 16, dtype=torch.bfloat16), layer.weight)
    assert not uses_onednn(torch.zeros(0, 16), layer.weight)
    assert layer(torch.zeros(0, 16)).shape == (0, 8)
    assert Linear(16, 8, device="meta")(torch.zeros(2, 16, device="meta")).shape == (2, 8)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not uses_onednn(torch.zeros(2, 16), layer.weight)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(2x15 and 16x8\)"):
        layer(torch.zeros(2, 15))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.zeros(2, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "mkl", "expected"),
    [
        ("AMD EPYC", True, True),
        ("Intel(R) Xeon(R) Platinum 8481C", True, False),
        ("Neoverse-V2", False, False),
        ("", True, False),
    ],
)
@pytest.mark.usefixtures("fresh_decision")
def test_intel_processors_use_mkl(
    name: str, mkl: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert prefers_onednn() is expected
