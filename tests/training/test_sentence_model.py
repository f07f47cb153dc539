"""Fine-tuning a base as a language model of the sentences of train."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from colakit.data.corpora import load_corpus
from colakit.data.splits import train_val_split
from colakit.data.tokenizer import SentenceTokenizer
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, LoRALinear, inject, lora_layers, merge_and_unload
from colakit.storage.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]


def nats_per_token(base: Path, sentences: tuple[str, ...]) -> float:
    """Return the loss, computed one sentence at a time."""
    model, tokenizer = load_gpt(base).eval(), SentenceTokenizer.from_base(base, prefix=True, suffix=True)
    tokens = tokenizer.encode(sentences)
    nats, count = 0.0, 0
    with torch.inference_mode():
        for i in range(len(sentences)):
            ids = torch.from_numpy(tokens.sentence(i).astype("int64"))
            nats += F.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="sum").item()
            count += len(ids) - 1
    return nats / count


@pytest.mark.parametrize("method", ["lora", "full"])
def test_language_model_finetuning_lowers_the_validation_loss(
    method: str, toy: Path, colakit: Run, tmp_path: Path
) -> None:
    common = ("--base", toy / "base", "--data", toy / "corpus", "--objective", "language-modelling", "--json")
    settings = ("--method", method, "--epochs", 3, "--lr", 3e-3, "--set", "finetune.base_dropout=0")
    code, out, err = colakit("finetune", *common, *settings, "--out", tmp_path / "run")
    assert code == 0, err
    summary = json.loads(out)
    corpus = load_corpus(toy / "corpus")
    val = train_val_split(corpus.split("train"), 0.1, 0)[1].sentences
    before, after = (nats_per_token(base, val) for base in (toy / "base", tmp_path / "run" / "base"))
    assert after < before - 0.04
    assert after == pytest.approx(summary["best"]["loss"], rel=0.01)  # base/ is rounded to bf16
    assert math.isfinite(summary["tokens_per_second"])


@pytest.mark.parametrize(
    "setting", ["add_bos=true", "ema_decay=0.9", "patience=2", "metric_for_best_model=loss"]
)
def test_settings_without_effect_are_refused(setting: str, toy: Path, colakit: Run, tmp_path: Path) -> None:
    common = ("--base", toy / "base", "--data", toy / "corpus", "--objective", "language-modelling")
    code, _, err = colakit("finetune", *common, "--set", f"finetune.{setting}", "--out", tmp_path / "run")
    assert code == 2
    assert "has no effect with --objective language-modelling" in err
    assert not (tmp_path / "run").exists()


def test_merge_and_unload_preserves_logits() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(13, 8, 8, 1, 2)).eval()
    inject(model, LoRAConfig(rank=2, target_modules=("c_attn", "mlp.c_proj")))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_b)
    ids = torch.randint(13, (2, 5))
    expected = model(ids)
    merge_and_unload(model)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert set(model.state_dict()) == set(GPT(model.config).state_dict())
    assert_close(model(ids), expected)
