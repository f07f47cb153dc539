"""Llama, Qwen2 and Qwen3 against transformers: logits, classification, text, gradients, files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.llama import TINY
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from colakit.data.batches import Batch
from colakit.errors import ColakitError
from colakit.inference.generation import generate_tokens
from colakit.kernels.native import find_compiler
from colakit.models.gpt.attention import KVCache
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt, read_config, save_gpt
from colakit.training.objectives import language_modelling
from colakit.utils.files import write_json

TIED = {**TINY, "tie_word_embeddings": True}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
    "TinyLlama": {"model_type": "llama", "tie_word_embeddings": False},
    "Llama 3.2": {"model_type": "llama", "rope_parameters": LLAMA3, "head_dim": 16},
    "Llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "linear scaling": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    },
    "one head of keys": {"model_type": "llama", "num_key_value_heads": 1},
    "Qwen2": {"model_type": "qwen2"},
    "Qwen3": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": False},
}

Pair = tuple[PreTrainedModel, GPT]


def reference_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**TIED, **MODELS[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at 0 and norms at 1, where a mix-up would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same random model twice: transformers' and colakit's."""
    reference = reference_model(request.param)
    folder = tmp_path_factory.mktemp("base")
    reference.save_pretrained(folder)
    return reference, load_gpt(folder)


def draw_ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(1, 100, (rows, tokens), generator=torch.Generator().manual_seed(1))


def ragged() -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask) of four sentences of 1, 4, 7 and 9 tokens."""
    mask = (torch.arange(9) < torch.tensor([[1], [4], [7], [9]])).long()
    return draw_ids(4, 9) * mask, mask


def same(actual: Tensor, expected: Tensor) -> None:
    # both are fp32; sums run in another order
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_match_transformers(pair: Pair) -> None:
    reference, model = pair
    input_ids = draw_ids(2, 40)  # beyond the original context of Llama 3's scaling
    same(model(input_ids), reference(input_ids).logits)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_classification_and_its_gradients_match_transformers(
    pair: Pair, layout: str, fp32: Compute, tmp_path: Path
) -> None:
    if layout == "packed" and find_compiler() is None:
        pytest.skip("needs a C compiler")
    reference, model = pair
    config = copy.deepcopy(reference.config)
    config.num_labels = 3
    peer = AutoModelForSequenceClassification.from_config(config).eval()
    peer.model.load_state_dict(reference.model.state_dict())
    classifier = model.classifier(3)
    with torch.no_grad():
        classifier.score.weight.copy_(peer.score.weight)
    input_ids, mask = ragged()
    compute = fp32.with_kernels("always", tmp_path) if layout == "packed" else fp32
    with compute.autocast():
        logits = classifier(input_ids, mask)
    expected = peer(input_ids, attention_mask=mask).logits
    same(logits, expected)
    labels = torch.tensor([0, 1, 2, 1])
    torch.nn.functional.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None
        same(parameter.grad, gradients[name])
        parameter.grad = None


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 3])
def test_greedy_text_matches_transformers(pair: Pair, samples: int, fp32: Compute) -> None:
    reference, model = pair
    prompt = draw_ids(samples, 6)
    mask = torch.ones_like(prompt)
    expected = reference.generate(prompt, attention_mask=mask, max_new_tokens=10, do_sample=False)[:, 6:]
    tokens = generate_tokens(model, prompt, max_new_tokens=10, compute=fp32, temperature=0)
    assert torch.equal(torch.stack(list(tokens), dim=1), expected)


@torch.no_grad()
def test_cached_logits_match_uncached_ones(pair: Pair) -> None:
    _, model = pair
    input_ids = draw_ids(2, 12)
    cache = KVCache(model.config, 2, 12, torch.device("cpu"), torch.float32)
    parts = (input_ids[:, :5], *input_ids[:, 5:].split(1, dim=1))
    hidden = torch.cat([model.body.forward_cached(part, cache) for part in parts], dim=1)
    torch.testing.assert_close(model.lm_logits(hidden), model(input_ids), atol=2e-5, rtol=0)


def test_gradients_match_transformers(pair: Pair) -> None:
    reference, model = pair
    input_ids, mask = ragged()
    labels = input_ids.masked_fill(mask == 0, -100)
    reference.zero_grad()
    reference(input_ids, attention_mask=mask, labels=labels).loss.backward()
    (language_modelling(model, Batch(input_ids, mask)).total / int(mask[:, 1:].sum())).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        assert parameter.grad is not None
        assert expected is not None
        same(parameter.grad, expected)
        assert "k_proj.bias" in name or expected.abs().max() > 1e-3, f"{name}: the tolerance would hide it"
        parameter.grad = None


@torch.no_grad()
def test_transformers_opens_what_save_gpt_writes(pair: Pair, tmp_path: Path) -> None:
    reference, model = pair
    save_gpt(model, tmp_path)
    input_ids = draw_ids(2, 12)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(reopened(input_ids).logits, reference(input_ids).logits)
    assert load_gpt(tmp_path).config == model.config


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_omitted_fields_get_the_defaults_of_transformers(family: str, tmp_path: Path) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    complete = read_config(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": family})
    assert read_config(tmp_path) == complete


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["rope_type", "'yarn'", "llama3"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"layer_types": ["sliding_attention", "full_attention"]}, ["layer_types"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"num_key_value_heads": 3}, ["num_kv_heads (=3)", "num_heads (=4)"]),
        ({"hidden_act": "swish2"}, ["activation", "'swish2'"]),
        ({"model_type": "mistral"}, ["'mistral'", "qwen3"]),
    ],
)
def test_configs_that_colakit_does_not_compute_are_refused(
    change: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    reference_model("SmolLM2").save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**json.loads((tmp_path / "config.json").read_text()), **change})
    with pytest.raises(ColakitError) as fault:
        load_gpt(tmp_path)
    assert all(name in str(fault.value) for name in ["config.json", *names])
