"""The built-in base opens in transformers and PEFT and matches its model card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.classifier import load_classifier
from colakit.models.gpt.model import GPT
from colakit.storage.gpt2 import EMBEDDED, load_gpt

Run = Callable[..., tuple[int, str, str]]
SENTENCES = [
    "The keys to the old house are here.",
    "Which book did you say that she had bought yesterday?",
    "It's 3 o'clock: naïve cafés don't open — 中!",
    "x",
]


@pytest.fixture(scope="module")
def ours() -> tuple[GPT, SentenceTokenizer]:
    return load_gpt(EMBEDDED).float().eval(), SentenceTokenizer.from_base(EMBEDDED)


def test_transformers_opens_it_and_computes_the_same_logits(ours: tuple[GPT, SentenceTokenizer]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = ours
    theirs = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(EMBEDDED)
    for sentence in SENTENCES:
        ids = reader(sentence, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode([sentence]).ids.tolist() == ids
        assert reader.decode(ids) == tokenizer.decode(ids) == sentence
        row = torch.tensor([[reader.eos_token_id, *ids]])
        with torch.no_grad():
            # fp32 on both sides, products in another order
            assert_close(model(row), theirs(input_ids=row).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_peft_opens_an_adapter_on_it_and_so_does_colakit(toy: Path, colakit: Run, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    where = ["--base", "builtin", "--data", toy / "corpus", "--out", tmp_path / "run"]
    code, _, err = colakit("finetune", *where, "--epochs", 1)
    assert code == 0, err
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin"
    base = AutoModelForSequenceClassification.from_pretrained(EMBEDDED, num_labels=2)
    theirs = PeftModel.from_pretrained(base, adapter)
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == 24
    assert load_classifier(str(adapter)).origin["base"] == "builtin"


def test_the_base_is_small_and_stored_in_bf16() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 32 * 2**20
    with safe_open(EMBEDDED / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_the_context_of_the_base_fits_the_sentences_of_cola(ours: tuple[GPT, SentenceTokenizer]) -> None:
    model, tokenizer = ours
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.config.num_positions >= 128
    assert model.config.embedding_dropout == pytest.approx(0.1)


def test_the_card_tells_data_licence_recipe_figures_and_limits() -> None:
    card = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", card, re.M) == ["Data", "Licence", "Recipe", "Figures", "Limits"]
    for source in ("Tatoeba", "African Storybook", "React documentation", "MedQuAD", "Rust"):
        assert source in card  # licences that ask for attribution
    num_parameters = sum(p.numel() for p in load_gpt(EMBEDDED).parameters())
    assert f"{num_parameters:,} parameters" in card
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    assert f"{config['n_layer']} blocks of width {config['n_embd']}" in card
