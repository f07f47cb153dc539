"""Corrupted sentences, and the stage of pre-training that tells them from real ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from colakit.data.batches import Batch
from colakit.data.corruptions import Corruptor
from colakit.engine.objectives import discrimination
from colakit.interop.gpt2 import load_gpt
from colakit.models.gpt import GPT, GPTConfig
from colakit.toy import ToyGrammar

Run = Callable[..., tuple[int, str, str]]
SENTENCES = [
    "The dogs bark at every cat.",
    "I like to bark.",
    "She barked and he was barking?",
    "These cats have seen him!",
]


@pytest.fixture
def corruptor() -> Corruptor:
    return Corruptor(SENTENCES)


@pytest.mark.parametrize("kind", ["drop", "swap", "move", "double", "insert", "replace", "inflect"])
def test_each_corruption_does_what_its_name_says(kind: str, corruptor: Corruptor) -> None:
    words = ["she", "barked", "at", "the", "dogs"]
    change = {"drop": -1, "double": 1, "insert": 1}.get(kind, 0)
    seen = set()
    for seed in range(100):
        found = corruptor.kinds[kind](list(words), random.Random(seed))
        assert len(found) == len(words) + change
        if kind in ("swap", "move"):
            assert sorted(found) == sorted(words)
        if kind in ("replace", "inflect"):
            assert sum(a != b for a, b in zip(found, words, strict=True)) <= 1
        if kind == "double":
            assert sum(a == b for a, b in pairwise(found)) == 1
        seen.add(tuple(found))
    assert len(seen) > 3


def test_inflection_knows_the_forms_that_were_seen(corruptor: Corruptor) -> None:
    assert corruptor.forms["bark"] == ["barked", "barking"]
    assert "dog" not in corruptor.forms  # no other form of it was seen
    assert corruptor.forms["him"] == ["he", "himself"]


def test_a_corrupted_sentence_is_another_and_still_written_as_one(corruptor: Corruptor) -> None:
    for seed, sentence in enumerate(SENTENCES * 50):
        found = corruptor.corrupt(sentence, random.Random(seed))
        assert found is not None
        assert found != sentence
        assert found[0].isupper()
        assert found[-1] == sentence[-1]
        assert found == corruptor.corrupt(sentence, random.Random(seed))
    assert corruptor.corrupt("Stop!", random.Random(0)) is None


def test_the_objective_is_both_losses_and_reads_no_corrupted_words() -> None:
    torch.manual_seed(0)
    config = GPTConfig(13, 8, 8, 1, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0)
    body = GPT(config)
    model = body.classifier(2)
    ids = torch.randint(13, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    batch = Batch(ids, mask, torch.tensor([1, 1, 0]))
    found = discrimination(0.5)(model, batch)
    logits = model(ids, mask)
    assert found.logits is not None
    assert_close(found.logits, logits)
    expected = F.cross_entropy(logits, torch.tensor([1, 1, 0]), reduction="sum")
    for row, length in ((0, 6), (1, 4)):
        words = body(ids[row : row + 1])[0]
        expected = expected + 0.5 * F.cross_entropy(words[: length - 1], ids[row, 1:length], reduction="sum")
    assert_close(found.total, expected)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grammar = ToyGrammar(5)
    path = tmp_path_factory.mktemp("text") / "toy.txt"
    path.write_text("\n".join(grammar.acceptable() + "\n" for _ in range(800)), encoding="utf-8")
    return path


def test_discriminating_writes_a_base_that_tunes_and_resumes(
    toy: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    settings = ["--set", f"pretrain.text.toy={text}", "--sentences", 400, "--lr", 2e-3, "--batch-size", 32]
    stepwise = ["--set", "discriminate.evaluate_every_steps=10", "--set", "discriminate.holdout=0.1"]
    common = ["--base", toy / "base", "--quiet", *settings, *stepwise]
    code, answer, err = colakit("discriminate", *common, "--json", "--out", tmp_path / "run")
    assert code == 0, err
    summary = json.loads(answer)
    assert set(summary["splits"]) == {"holdout"}
    assert summary["splits"]["holdout"]["mcc"] > 0.2
    before, after = load_gpt(toy / "base"), load_gpt(tmp_path / "run" / "base")
    assert before.config == after.config
    assert not torch.equal(before.transformer.wte.weight, after.transformer.wte.weight)
    code, _, err = colakit(
        *("finetune", "--base", tmp_path / "run" / "base", "--data", toy / "corpus", "--epochs", 1),
        *("--quiet", "--out", tmp_path / "tuned"),
    )
    assert code == 0, err


def test_without_text_nothing_begins(toy: Path, colakit: Run) -> None:
    code, _, err = colakit("discriminate", "--base", toy / "base")
    assert code == 2
    assert "nothing to read" in err
