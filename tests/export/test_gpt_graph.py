"""The ONNX graph of a GPT equals the module at every shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import colakit
from colakit.export.gpt_graph import gpt_graph
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier

ROOT = Path(colakit.__file__).parent
LLAMA: dict[str, Any] = {"activation": "silu", "mlp_width": 24, "num_kv_heads": 2, "head_width": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {**LLAMA, "family": "llama", "rope_original_positions": 16, "rope_factor": 4.0},
    "qwen3": {**LLAMA, "family": "qwen3", "qk_norm": True, "tied_embeddings": False},
}


def classifier(family: str) -> GPTClassifier:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "num_positions": 40,
        "width": 16,
        "num_layers": 2,
        "num_heads": 4,
    }
    model = GPT(GPTConfig(**shape, **FAMILIES[family])).classifier(3).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)  # default weights give attention so even that errors would not show
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_equals_the_module_at_every_shape(family: str) -> None:
    model = classifier(family)
    bias = torch.tensor([1.0, 2.0, 3.0])
    content = gpt_graph(model, bias).SerializeToString()
    assert str(ROOT).encode() not in content, "the exporter's notes hold paths of this machine"
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    for lengths in ([1], [40], [1] * 5, [33, 1, 12, 40], [2, 1]):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(0, 50, mask.shape, generator=generator)
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        expected = (model(ids, mask) + bias).numpy()
        assert np.abs(logits - expected).max() <= 1e-5  # fp32, in another order of operations
