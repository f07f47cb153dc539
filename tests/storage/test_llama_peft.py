"""Adapters of the Llama family that PEFT and colakit exchange."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from support.llama import TINY
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from colakit.models.gpt.model import GPTClassifier
from colakit.models.lora import LoRAConfig, inject, lora_layers, train_modules
from colakit.storage.gpt2 import load_gpt
from colakit.storage.peft import apply_adapter, read_adapter, write_adapter

NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **TINY)
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def sentences() -> tuple[Tensor, Tensor]:
    mask = (torch.arange(9) < torch.tensor([[1], [4], [9]])).long()
    return torch.randint(1, 100, (3, 9), generator=torch.Generator().manual_seed(1)) * mask, mask


def move(model: nn.Module) -> None:
    """Change every trainable parameter, since a new adapter computes nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
@torch.no_grad()
def test_colakit_reads_an_adapter_of_peft(base: Path, dora: bool, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules="all-linear",
        modules_to_save=["score", *NORMS],
        use_dora=dora,
    )
    peer = get_peft_model(model, config).eval()
    move(peer)
    peer.save_pretrained(tmp_path)
    classifier = load_gpt(base).classifier(2)
    apply_adapter(classifier, read_adapter(tmp_path), where="adapter")
    input_ids, mask = sentences()
    same(classifier.eval()(input_ids, mask), peer(input_ids, attention_mask=mask).logits)


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dora": True}, {"init": "pissa"}])
@torch.no_grad()
def test_peft_reads_an_adapter_of_colakit(base: Path, settings: dict[str, bool], tmp_path: Path) -> None:
    config = LoRAConfig(rank=4, alpha=8.0, **settings)  # type: ignore[arg-type]
    classifier: GPTClassifier = load_gpt(base).classifier(2)
    inject(classifier, config)
    assert len(list(lora_layers(classifier))) == 2 * 7  # all projections of both blocks
    train_modules(classifier)
    move(classifier)
    write_adapter(classifier, tmp_path, config, base=str(base))
    peer = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    input_ids, mask = sentences()
    expected = classifier.eval()(input_ids, mask)
    same(peer(input_ids, attention_mask=mask).logits, expected)
    again = load_gpt(base).classifier(2)
    apply_adapter(again, read_adapter(tmp_path), where="adapter")
    same(copy.deepcopy(again).eval()(input_ids, mask), expected)
