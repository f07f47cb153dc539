"""`export --format peft`: one adapter of LoRA only, equal to the run, for mixed batches and hot-swap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exported import write_gpt

from colakit.data.corpora import load_corpus
from colakit.export.peft_adapter import carried_base, lora_updates
from colakit.export.prepare import prepare
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.models.gpt.model import GPTClassifier
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt

TOLERANCE = 1e-4  # fp32; the factors of a full-rank update are rounded


@pytest.fixture(scope="module")
def folders(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folder of a GPT-2 with trained norms, and its adapter."""
    from colakit.cli.app import main

    folder = tmp_path_factory.mktemp("peft")
    run, out = write_gpt(folder / "run", toy), folder / "out"
    words = ["export", run, "--format", "peft", "--base", toy / "base", "--data", toy / "corpus"]
    assert main([*map(str, words), "--license", "mit", "--out", str(out), "--quiet"]) == 0
    return run, out


def batch(classifier: SentenceClassifier, toy: Path) -> tuple[torch.Tensor, torch.Tensor]:
    sentences = load_corpus(toy / "corpus").split("id_dev").sentences[:12]
    ids, mask = map(torch.from_numpy, classifier.encode(sentences).padded(np.arange(12)))
    return ids.where(mask.bool(), torch.tensor(classifier.tokenizer.backend.token_to_id("<|padding|>"))), mask


@torch.no_grad()
def test_mixed_batches_and_hot_swap_give_the_logits_of_the_run(folders: tuple[Path, Path], toy: Path) -> None:
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter
    from transformers import AutoModelForSequenceClassification

    run, out = folders
    prepared = prepare(load_classifier(run)).classifier
    ids, mask = batch(prepared, toy)
    expected = prepared.model(ids, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about GPT-2's transposed layers
        model = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(out / "base"), out
        ).eval()
        model.load_adapter(str(out), "second")
    names = ["default", "second", "__base__"] * 4
    mixed = model(input_ids=ids, attention_mask=mask, adapter_names=names).logits
    for i, name in enumerate(names):
        of_row = torch.zeros(2) if name == "__base__" else expected[i]  # the head of the base is zero
        torch.testing.assert_close(mixed[i], of_row, atol=TOLERANCE, rtol=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    hotswap_adapter(model, str(out), "default")
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask).logits, expected, atol=TOLERANCE, rtol=0
    )


def test_colakit_reads_its_exported_adapter(folders: tuple[Path, Path], toy: Path, fp32: Compute) -> None:
    run, out = folders
    original, again = load_classifier(run), load_classifier(out)
    tokens = original.encode(load_corpus(toy / "corpus").split("ood_dev").sentences)
    assert again.encode(["the cat"]).ids.tolist() == original.encode(["the cat"]).ids.tolist()
    expected = original.logits(tokens, fp32) / original.temperature
    np.testing.assert_allclose(again.logits(tokens, fp32), expected, atol=TOLERANCE)
    assert again.threshold == original.threshold
    text = "".join(path.read_text() for path in out.rglob("*.json"))
    assert str(toy) not in text


def test_what_no_linear_layer_can_take_is_named(
    colakit: Callable[..., Any], toy: Path, tmp_path: Path
) -> None:
    run = write_gpt(tmp_path / "run", toy)
    classifier = load_classifier(run)
    assert isinstance(classifier.model, GPTClassifier)
    classifier.model.body.embedding.weight.data[3] += 1
    classifier.save(run / "ckpt.pt")
    words = ["--format", "peft", "--base", toy / "base", "--data", toy / "corpus", "--license", "mit"]
    code, _, err = colakit("export", run, *words, "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "wte was trained" in err
    assert "lora.modules_to_save=score" in err


def test_layers_without_a_changed_norm_keep_the_rank_of_their_adapter(toy: Path, tmp_path: Path) -> None:
    tuned = prepare(load_classifier(write_gpt(tmp_path / "run", toy))).classifier.model
    assert isinstance(tuned, GPTClassifier)
    updates = lora_updates(tuned, carried_base(tuned, load_gpt(toy / "base")).body)
    ranks = {name: int(torch.linalg.matrix_rank(update, rtol=1e-6)) for name, update in updates.items()}
    assert ranks["transformer.h.0.attn.c_proj"] == 4
    assert ranks["transformer.h.0.attn.c_attn"] == 32
