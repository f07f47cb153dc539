"""Choice of device and precision, with its reason."""

from __future__ import annotations

import pytest
import torch

from colakit.api.session import Session
from colakit.config.resolve import Resolved
from colakit.config.settings import Settings
from colakit.errors import ColakitError
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.utils.console import Reporter


def test_prepare_cpu_flushes_denormals() -> None:
    tiny = torch.full((16,), 1e-30)
    torch.set_flush_denormal(False)
    assert (tiny * 1e-10).min() > 0
    prepare_cpu()
    try:
        assert (tiny * 1e-10).max() == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_auto_falls_back_to_the_cpu_and_a_named_gpu_fails() -> None:
    compute = resolve_compute("auto", "auto")
    assert compute.device.type in ("cpu", "mps")
    assert "no usable GPU" in str(compute) or "Apple GPU" in str(compute)
    with pytest.raises(ColakitError, match=r"--device cuda: not available \(0 CUDA devices\)"):
        resolve_compute("cuda", "auto")


@pytest.mark.parametrize(
    ("units", "dtype", "why"),
    [
        (
            {"cpu_name": "Intel Xeon", "amx_bf16": True, "avx512_bf16": True},
            torch.bfloat16,
            "CPU with AMX",
        ),
        (
            {"cpu_name": "Intel Xeon", "amx_bf16": False, "avx512_bf16": True},
            torch.float32,
            "Intel CPU with AVX512-BF16, no AMX",
        ),
        (
            {"cpu_name": "AMD EPYC", "amx_bf16": False, "avx512_bf16": True},
            torch.bfloat16,
            "CPU with AVX512-BF16",
        ),
        ({"avx512_bf16": True}, torch.bfloat16, "CPU with AVX512-BF16"),
        ({}, torch.float32, "CPU without bf16 matrix units"),
    ],
)
def test_auto_precision_is_the_faster_one_of_the_cpu(
    units: dict[str, object], dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    compute = resolve_compute("cpu", "auto")
    assert compute.dtype == dtype
    assert why in str(compute)


@pytest.mark.parametrize(("units", "warned"), [({}, True), ({"avx512_bf16": True}, False)])
def test_bf16_is_warned_of_where_it_is_slow(
    units: dict[str, object],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    settings = Settings.model_validate({"device": "cpu", "precision": "bf16"})
    assert Session("finetune", Resolved(settings), Reporter(quiet=True)).compute.dtype == torch.bfloat16
    assert ("--precision bf16: slower than fp32" in " ".join(capsys.readouterr().err.split())) is warned
