"""What only a CUDA device can show: `make test-gpu`. Without one these tests are skipped, and say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colakit.engine.device import resolve_compute
from colakit.engine.generation import generate_tokens
from colakit.interop.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_whole_pipeline_runs_on_the_gpu(precision: str, toy: Path, colakit: Run, tmp_path: Path) -> None:
    common = ["--base", toy / "base", "--data", toy / "corpus", "--device", "cuda", "--precision", precision]
    commands = [["finetune"], ["distill", "--teacher", tmp_path / "finetune"], ["train-scratch"]]
    for command in commands:
        code, _, err = colakit(*command, *common, "--epochs", 2, "--out", tmp_path / str(command[0]))
        assert code == 0, err
    code, out, err = colakit("evaluate", *(tmp_path / str(c[0]) for c in commands), *common[2:], "--json")
    assert code == 0, err
    assert len(json.loads(out)["splits"]["dev"]["models"]) == 3


def test_the_gpu_generates_what_the_cpu_does(toy: Path) -> None:
    texts = []
    for device in ("cpu", "cuda"):
        compute = resolve_compute(device, "fp32")
        model = compute.place(load_gpt(toy / "base").requires_grad_(False))
        prompt = torch.tensor([[1, 2, 3]])
        tokens = generate_tokens(model, prompt, max_new_tokens=10, compute=compute, temperature=0)  # type: ignore[arg-type]
        texts.append([int(token) for token in tokens])
    assert texts[0] == texts[1]
