"""Models without weights."""

from __future__ import annotations

import torch

from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.meta_device import without_weights
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN


def test_an_empty_model_has_every_shape_and_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with without_weights():
        gpt, rnn = GPT(GPTConfig(11, 8, 8, 1, 2)), DistilRNN(RNNConfig(vocab_size=11, num_labels=2))
    assert torch.equal(torch.get_rng_state(), before)
    full = GPT(GPTConfig(11, 8, 8, 1, 2))
    assert {n: p.shape for n, p in gpt.named_parameters()} == {n: p.shape for n, p in full.named_parameters()}
    assert all(p.is_meta for model in (gpt, rnn) for p in model.parameters())


def test_afterwards_models_have_weights_again() -> None:
    with without_weights():
        pass
    weight = torch.nn.Linear(3, 3).weight
    assert not weight.is_meta
    assert weight.std() > 0
