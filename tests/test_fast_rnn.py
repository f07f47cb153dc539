"""The student's fast path says what the plain one says, and is what every command takes on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from students import VOCAB, student
from torch import Tensor

from colakit.data.bpe import train_tokenizer
from colakit.data.tokens import Tokens
from colakit.engine.classifier import SentenceClassifier
from colakit.engine.device import Compute
from colakit.engine.inference import compute_logits, soonest
from colakit.engine.predictor import Predictor
from colakit.models.fast_rnn import FastRNN
from colakit.models.gpt import GPT, GPTConfig
from colakit.models.rnn import CELLS, POOLINGS

LENGTHS = (1, 4, 60, 9, 30, 9)
SENTENCES = ("The dog barks.", "", "Dogs that the cat sees bark.", "The cat sees the dog.", "Bark!")


def ragged() -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask) of sentences of `LENGTHS`, with padding that is no token's."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(0, VOCAB, mask.shape, generator=generator) * mask, mask


def same(actual: Tensor, expected: Tensor) -> None:
    # fp32 both, products and tanh in another order; sixty steps do not add up, as states forget
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_fast_path_says_what_the_plain_one_says(
    cell: str, pooling: str, bidirectional: bool, num_layers: int
) -> None:
    model = student(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=num_layers)
    input_ids, mask = ragged()
    logits, fast = model(input_ids, mask), FastRNN(model)
    assert logits.std(dim=0).min() > 1e-3, "the sentences must differ for this to mean anything"
    same(fast(input_ids, mask), logits)
    for i, length in enumerate(LENGTHS):  # alone, equal tokens are not looked for
        same(fast(input_ids[i : i + 1, :length], mask[i : i + 1, :length]), logits[i : i + 1])
        same(fast(input_ids[i : i + 1], mask[i : i + 1]), logits[i : i + 1])  # with its padding


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
def test_in_bf16_it_says_nearly_that(cell: str) -> None:
    model = student(cell=cell, num_layers=2)
    logits, found = model(*ragged()), FastRNN(model, torch.bfloat16)(*ragged())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits, atol=0.02, rtol=0)
    assert not torch.equal(found, FastRNN(model)(*ragged()))


@torch.no_grad()
def test_tokens_that_share_a_row_share_it_on_the_fast_path() -> None:
    model = student(num_embeddings=12)
    model.embed_only(range(5, 16))
    same(FastRNN(model)(*ragged()), model(*ragged()))


@torch.no_grad()
def test_the_fast_path_does_not_change_the_model_and_follows_no_later_change() -> None:
    model = student()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = FastRNN(model)
    said = fast(*ragged())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer in model.layers.parameters():
        layer.zero_()
    assert torch.equal(fast(*ragged()), said)


def test_only_a_student_on_a_cpu_takes_the_fast_path(fp32: Compute) -> None:
    model, gpu = student(), replace(fp32, device=torch.device("cuda"))
    gpt = GPT(GPTConfig(vocab_size=VOCAB, num_positions=8, width=8, num_layers=1, num_heads=2)).classifier(2)
    assert isinstance(soonest(model, fp32), FastRNN)
    assert soonest(model, gpu) is model
    assert soonest(gpt, fp32) is gpt


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_many_sentences_are_the_plain_ones_in_every_precision(
    fp32: Compute, dtype: torch.dtype
) -> None:
    model = student(dropout=0.5).train()  # what a run evaluates between two epochs
    rows = [row[mask.bool()].numpy().astype(np.int32) for row, mask in zip(*ragged(), strict=True)]
    found = compute_logits(model, Tokens.pack(rows), replace(fp32, dtype=dtype), batch_size=4)
    assert model.training
    same(torch.from_numpy(found), model.eval()(*ragged()))


@pytest.fixture
def classifier() -> SentenceClassifier:
    tokenizer = train_tokenizer(SENTENCES, 270)
    model = student(vocab_size=tokenizer.vocab_size, num_labels=2)
    return SentenceClassifier(model, tokenizer, ("bad", "good"), max_tokens=12, threshold=0.4)


def test_a_predictor_labels_as_the_classifier_does(classifier: SentenceClassifier, fp32: Compute) -> None:
    logits = classifier.logits(classifier.encode(SENTENCES), fp32)
    predictor = Predictor(classifier, fp32, batch_size=2)
    found = predictor(SENTENCES)
    assert found.labels.tolist() == classifier.decide(logits).tolist()
    np.testing.assert_allclose(found.probs.sum(axis=1), 1)
    alone = [predictor([sentence]) for sentence in SENTENCES]
    np.testing.assert_allclose(np.concatenate([one.probs for one in alone]), found.probs, atol=1e-5)
    assert found.num_truncated == sum(one.num_truncated for one in alone) == 1


def test_a_predictor_of_no_sentences_says_nothing(classifier: SentenceClassifier, fp32: Compute) -> None:
    found = Predictor(classifier, fp32)([])
    assert (found.labels.shape, found.probs.shape, found.num_truncated) == ((0,), (0, 2), 0)


def test_a_predictor_takes_products_in_bf16_where_it_is_told(
    classifier: SentenceClassifier, fp32: Compute
) -> None:
    halved, told = replace(fp32, dtype=torch.bfloat16), {"student_dtype": torch.bfloat16}
    expected, untold, found = (
        Predictor(classifier, compute, **words)(SENTENCES).probs
        for compute, words in ((fp32, {}), (halved, {}), (halved, told))
    )
    assert np.array_equal(untold, expected)  # whatever the machine is fast at
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.01)
