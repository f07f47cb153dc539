"""Corrupted sentences, and pre-training with `--objective real-fake`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.toy import ToyGrammar
from torch.testing import assert_close

from colakit.data.batches import PairBatch
from colakit.data.corruption import Corruptor
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.storage.gpt2 import load_gpt, save_gpt
from colakit.training.objectives import discrimination

Run = Callable[..., tuple[int, str, str]]
REAL_FAKE = ["pretrain", "--objective", "real-fake"]
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
def test_each_corruption_changes_the_words_as_named(kind: str, corruptor: Corruptor) -> None:
    words = ["she", "barked", "at", "the", "dogs"]
    change = {"drop": -1, "double": 1, "insert": 1}.get(kind, 0)
    seen = set()
    for seed in range(100):
        changed = corruptor.change(kind, list(words), random.Random(seed))
        assert len(changed) == len(words) + change
        if kind in ("swap", "move"):
            assert sorted(changed) == sorted(words)
        if kind in ("replace", "inflect"):
            assert sum(a != b for a, b in zip(changed, words, strict=True)) <= 1
        if kind == "double":
            assert sum(a == b for a, b in pairwise(changed)) == 1
        seen.add(tuple(changed))
    assert len(seen) > 3


def test_inflection_uses_forms_of_the_corpus(corruptor: Corruptor) -> None:
    assert corruptor.forms["bark"] == ["barked", "barking"]
    assert "dog" not in corruptor.forms  # no other form of it was seen
    assert corruptor.forms["him"] == ["he", "himself"]


def test_a_corrupted_sentence_differs_and_keeps_capital_and_end_mark(corruptor: Corruptor) -> None:
    for seed, sentence in enumerate(SENTENCES * 50):
        corrupted = corruptor.corrupt(sentence, random.Random(seed))
        assert corrupted is not None
        assert corrupted != sentence
        assert corrupted[0].isupper()
        assert corrupted[-1] == sentence[-1]
        assert corrupted == corruptor.corrupt(sentence, random.Random(seed))
    assert corruptor.corrupt("Stop!", random.Random(0)) is None


def test_a_moved_name_keeps_its_capital(corruptor: Corruptor) -> None:
    corrupted = {corruptor.corrupt("John saw these dogs.", random.Random(seed)) for seed in range(60)}
    assert len(corrupted) > 20
    assert not any("john" in str(sentence) for sentence in corrupted)
    moved = {corruptor.corrupt("Cats have seen him.", random.Random(seed)) for seed in range(60)}
    assert any(" cats" in str(sentence) for sentence in moved)  # a word that was seen in lower case


@pytest.mark.parametrize(("lm_weight", "pair_weight"), [(0.5, 0.0), (0.0, 2.0), (0.5, 2.0)])
def test_the_objective_is_the_sum_of_three_losses(lm_weight: float, pair_weight: float) -> None:
    torch.manual_seed(0)
    config = GPTConfig(13, 8, 8, 1, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0)
    body = GPT(config)
    model = body.classifier(2)
    ids, lengths = torch.randint(13, (4, 6)), [6, 5, 4, 6]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    labels = torch.tensor([1, 0, 1, 0])
    loss = discrimination(lm_weight, pair_weight)(model, PairBatch(ids, mask, labels))
    logits = model(ids, mask)
    assert loss.logits is not None
    assert_close(loss.logits, logits)
    words = body(ids)
    nats = [
        F.cross_entropy(words[row, : length - 1], ids[row, 1:length], reduction="sum")
        for row, length in enumerate(lengths)
    ]
    expected = F.cross_entropy(logits, labels, reduction="sum") + lm_weight * (nats[0] + nats[2])
    for real, corrupted in (nats[:2], nats[2:]):
        expected = expected + pair_weight * torch.log1p(torch.exp(real - corrupted))
    assert_close(loss.total, expected)
    leaves = list(model.parameters())
    wanted = torch.autograd.grad(expected, leaves)
    for one, two in zip(torch.autograd.grad(loss.total, leaves), wanted, strict=True):
        assert_close(one, two)


@pytest.mark.parametrize("pair_weight", [0.0, 1.0])
def test_corrupted_tokens_affect_the_pair_loss_alone(pair_weight: float) -> None:
    torch.manual_seed(0)
    config = GPTConfig(13, 8, 8, 1, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0)
    model = GPT(config).classifier(2)
    model.score.weight.data.zero_()
    ids, mask = torch.randint(13, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    batch = PairBatch(ids, mask, torch.tensor([1, 0]))
    other = replace(batch, input_ids=torch.stack([ids[0], (ids[1] + 1) % 13]))
    losses = [discrimination(0.5, pair_weight)(model, one).total for one in (batch, other)]
    assert torch.equal(*losses) == (pair_weight == 0)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grammar = ToyGrammar(5)
    path = tmp_path_factory.mktemp("text") / "toy.txt"
    path.write_text("\n".join(grammar.acceptable() + "\n" for _ in range(800)), encoding="utf-8")
    return path


def test_real_fake_training_writes_a_base_that_tunes_and_resumes(
    toy: Path, text: Path, colakit: Run, tmp_path: Path
) -> None:
    common = [*REAL_FAKE, "--init-from", toy / "base", text, "--sentences", 400, "--quiet"]
    for setting in ("lr=2e-3", "batch_size=16", "evaluate_every_steps=10", "val_fraction=0.1"):
        common += ["--set", f"real_fake.{setting}"]
    code, printed, err = colakit(*common, "--json", "--out", tmp_path / "run")
    assert code == 0, err
    summary = json.loads(printed)
    assert set(summary["splits"]) == {"val"}
    assert summary["splits"]["val"]["mcc"] > 0.2
    finished = (tmp_path / "run" / "summary.json").read_bytes()
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed after its last checkpoint
    code, _, err = colakit(*common, "--resume", "--out", tmp_path / "run")
    assert code == 0, err
    ends = [json.loads(text) for text in (finished, (tmp_path / "run" / "summary.json").read_bytes())]
    assert ends[0]["splits"] == ends[1]["splits"]
    before, after = load_gpt(toy / "base"), load_gpt(tmp_path / "run" / "base")
    assert before.config == after.config
    assert not torch.equal(before.transformer.wte.weight, after.transformer.wte.weight)
    half = [*common, "--set", "pretrain.start_weight=0.5", "--out", tmp_path / "half"]
    code, _, err = colakit(*half)
    assert code == 0, err
    start, end, half_way = (m.state_dict() for m in (before, after, load_gpt(tmp_path / "half" / "base")))
    for name, value in half_way.items():
        assert_close(value, (start[name] + end[name]) / 2, rtol=2**-7, atol=1e-4)  # bf16
    models = [tmp_path / "half", tmp_path / "half" / "base", tmp_path / "half" / "ckpt.pt"]
    code, printed, err = colakit("evaluate", "--text", text, *models, "--json")
    assert code == 0, err
    run, base, classifier = (model["bits_per_byte"] for model in json.loads(printed)["models"])
    assert run == base != classifier  # a run folder means the base that it wrote
    code, _, err = colakit(
        *("finetune", "--base", tmp_path / "run" / "base", "--data", toy / "corpus", "--epochs", 1),
        *("--quiet", "--out", tmp_path / "tuned"),
    )
    assert code == 0, err


def test_a_base_with_an_output_layer_of_its_own_is_refused(text: Path, colakit: Run, tmp_path: Path) -> None:
    config = GPTConfig(13, 8, 8, 1, 2, None, "silu", family="llama", tied_embeddings=False)
    save_gpt(GPT(config), tmp_path / "base")
    code, _, err = colakit(*REAL_FAKE, "--init-from", tmp_path / "base", text, "--out", tmp_path / "run")
    assert code == 2
    assert "tie_word_embeddings: false" in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_dry_run_does_not_write_to_the_cache(
    toy: Path, text: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAKIT_CACHE", str(tmp_path / "cache"))
    arguments = [*REAL_FAKE, "--init-from", toy / "base", text, "--dry-run"]
    code, _, err = colakit(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    assert "dry run: nothing was written" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init-from", "BASE"], "no text to read"),
        (["TEXT"], "objective: real-fake trains an existing base; set init_from"),
        (["TEXT", "--init-from", "BASE", "--lr", "0.1"], "Set real_fake.lr instead"),
        (
            ["TEXT", "--init-from", "BASE", "--num-heads", "8"],
            "pretrain.num_heads is not used by --objective real-",
        ),
        (
            ["TEXT", "--objective", "language-modelling", "--sentences", "20"],
            "real_fake.sentences is not",
        ),
    ],
)
def test_missing_or_unused_settings_are_refused(
    arguments: list[str], message: str, toy: Path, text: Path, colakit: Run
) -> None:
    paths = {"BASE": toy / "base", "TEXT": text}
    code, _, err = colakit(*REAL_FAKE, *(paths.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in " ".join(err.split())
