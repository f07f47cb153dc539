"""Training of all weights, from the base or from random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colakit.inference.classifier import load_classifier
from colakit.storage.gpt2 import load_gpt

Run = Callable[..., tuple[int, str, str]]


def tune(colakit: Run, toy: Path, out: Path, *more: str) -> dict[str, object]:
    common = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--lr", 1e-3, "--quiet"]
    code, printed, err = colakit("finetune", *common, "--method", "full", "--json", "--out", out, *more)
    assert code == 0, err
    return json.loads(printed)


def test_full_finetuning_trains_and_saves_every_weight(toy: Path, colakit: Run, tmp_path: Path) -> None:
    summary = tune(colakit, toy, tmp_path / "run")
    classifier = load_classifier(tmp_path / "run")
    before = dict(load_gpt(toy / "base").named_parameters())
    after = {name: p for name, p in classifier.model.named_parameters() if name != "score.weight"}
    assert before.keys() == after.keys()
    unread = {"transformer.wpe.weight"}  # unused positions do not train
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - unread)
    assert summary["parameters"]["trainable"] == summary["parameters"]["total"]  # type: ignore[index]
    assert classifier.name == "finetune (GPT-2, full)"
    assert not (tmp_path / "run" / "adapter").exists()


def test_from_scratch_depends_only_on_the_seed(toy: Path, colakit: Run, tmp_path: Path) -> None:
    scratch = ["--set", "finetune.from_scratch=true", "--set", "finetune.lr=1e-9"]
    common = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--quiet", "--method", "full"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = colakit("finetune", *common, *scratch, "--seed", seed, "--out", tmp_path / name)
        assert code == 0, err
    words = {
        name: load_classifier(tmp_path / name).model.get_parameter("transformer.wte.weight") for name in "abc"
    }
    assert torch.equal(words["a"], words["b"])
    assert not torch.allclose(words["a"], words["c"], atol=1e-3)
    pretrained = load_gpt(toy / "base").transformer.wte.weight
    assert not torch.allclose(words["a"], pretrained, atol=1e-3)
    assert words["a"].std().item() == pytest.approx(0.02, rel=0.1)  # GPT-2's initial deviation
    assert load_classifier(tmp_path / "a").name == "finetune (GPT-2, from scratch)"


def test_an_adapter_on_random_weights_is_refused(toy: Path, colakit: Run) -> None:
    code, _, err = colakit(
        "finetune", "--base", toy / "base", "--data", toy / "corpus", "--set", "finetune.from_scratch=true"
    )
    assert code == 2
    assert "from_scratch requires method: full" in err
