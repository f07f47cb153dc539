"""Fresh adapters change no bit of a model's output, whatever the precision, variant and layout of the input.

PiSSA is the exception: it splits W in two and sums the products of both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from colakit.inference.forward import evaluating
from colakit.inference.generation import generate_tokens
from colakit.kernels.native import find_compiler
from colakit.models.gpt.attention import KVCache
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import LoRAConfig, inject, merge, train_modules
from colakit.runtime.device import Compute

CONFIG = GPTConfig(90, 24, 128, 2, 2)  # heads of width 64, as the attention kernel requires
LENGTHS = torch.tensor([9, 4, 12, 1, 7])
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rslora and dora": {"rslora": True, "dora": True},
    "dropout": {"dropout": 0.5},
    "dora with dropout": {"dora": True, "dropout": 0.5},
    "patterns": {"rank_pattern": {"c_proj": 2}, "alpha_pattern": {"c_fc": 3.0}},
    "one block": {"layers_to_transform": (1,)},
    "attention": {"target_modules": ("c_attn",)},
}
PISSA: dict[str, dict[str, Any]] = {
    "pissa": {"init": "pissa"},
    "rslora and pissa": {"rslora": True, "init": "pissa"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=DTYPES)
def compute(request: pytest.FixtureRequest, tmp_path: Path) -> Compute:
    plain = Compute(torch.device("cpu"), DTYPES[request.param], "test")
    return plain.with_kernels("always" if find_compiler() else "never", tmp_path)


def prepared(variant: dict[str, Any] | None, compute: Compute) -> GPTClassifier:
    """Return a classifier in evaluation mode with fresh adapters (None: without), placed as commands do."""
    torch.manual_seed(0)
    model = GPT(CONFIG).classifier(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # GPT-2's own start is nearly linear
    if variant is None:
        model.requires_grad_(False)
        compute.place(model.language_model())  # a classifier without adapters is tuned in full
        return model.eval()
    config = LoRAConfig(**{"rank": 4, **variant})
    inject(model, config)
    train_modules(model, layers=config.layers_to_transform)
    compute.place(model)
    return model.eval()


def sentences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(CONFIG.vocab_size, (len(LENGTHS), int(LENGTHS.max())), generator=generator)
    return input_ids, (torch.arange(input_ids.shape[1]) < LENGTHS[:, None]).long()


# -- ways to compute logits


def padded(model: GPTClassifier, compute: Compute) -> Tensor:
    with evaluating(model), compute.autocast():
        return model(*sentences())


def packed(model: GPTClassifier, compute: Compute) -> Tensor:
    with compute.autocast():  # with gradients, so with kernels
        return model(*sentences()).detach()


def from_states(model: GPTClassifier, compute: Compute) -> Tensor:
    ids, mask = sentences()
    with evaluating(model), compute.autocast():
        return model(ids, mask, model.transformer.frozen_states(ids))


def language_model(model: GPTClassifier, compute: Compute) -> Tensor:
    with evaluating(model), compute.autocast():
        return model.language_model()(sentences()[0])


def cached(model: GPTClassifier, compute: Compute) -> Tensor:
    ids, body = sentences()[0], model.transformer
    cache = KVCache(CONFIG, len(ids), ids.shape[1], compute.device, compute.dtype)
    with evaluating(model), compute.autocast():
        parts = [body.forward_cached(ids[:, :3], cache)]
        parts += [body.forward_cached(ids[:, t : t + 1], cache) for t in range(3, ids.shape[1])]
        return model.language_model().lm_logits(torch.cat(parts, dim=1))


def merged(model: GPTClassifier, compute: Compute) -> Tensor:
    merge(model)
    return padded(model, compute)


def transposed(model: GPTClassifier, compute: Compute) -> Tensor:
    for module in model.modules():  # as `Predictor` stores weights
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return padded(model, compute)


def sampled(model: GPTClassifier, compute: Compute) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = generate_tokens(
        model.language_model().eval(),
        sentences()[0][:, :4],
        max_new_tokens=30,  # beyond the positions of the model
        compute=compute,
        temperature=0.8,
        generator=generator,
    )
    return torch.stack(list(tokens))


PATHS: dict[str, Callable[[GPTClassifier, Compute], Tensor]] = {
    path.__name__: path
    for path in (padded, packed, from_states, language_model, cached, merged, transposed, sampled)
}


@pytest.mark.parametrize("path", PATHS)
def test_injection_changes_no_bit(path: str, compute: Compute) -> None:
    expected = PATHS[path](prepared(None, compute), compute)
    for variant, settings in VARIANTS.items():
        assert torch.equal(PATHS[path](prepared(settings, compute), compute), expected), variant


@pytest.mark.parametrize("path", [name for name in PATHS if name != "sampled"])
def test_pissa_injection_changes_logits_by_rounding_only(path: str, compute: Compute) -> None:
    expected = PATHS[path](prepared(None, compute), compute).float()
    assert expected.std() > 0.2
    # bf16 has 8 bits, and the residual of W is rounded to them; logits are of the order of 1
    atol = 1e-5 if compute.dtype == torch.float32 else 0.05
    for settings in PISSA.values():
        logits = PATHS[path](prepared(settings, compute), compute).float()
        assert_close(logits, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("variant", ["rslora=false", "rslora=true", "dora=true"])
def test_generate_with_fresh_adapters_writes_the_base_s_text(
    variant: str, precision: str, toy: Path, colakit: Callable[..., tuple[int, str, str]]
) -> None:
    command = ["generate", "--base", toy / "base", "--prompt", "the cat", "--temperature", 0.8]
    command += ["--precision", precision, "--max-new-tokens", 40]
    code, text, _ = colakit(*command)
    assert code == 0
    assert colakit(*command, "--rank", 8, "--set", f"lora.{variant}")[:2] == (0, text)
