"""A partial embedding trains its rows exactly as the full embedding would."""

from __future__ import annotations

import pytest
import torch
from support.students import VOCAB, student
from torch import Tensor, nn
from torch.testing import assert_close

from colakit.models.parameters import count_parameters
from colakit.models.rnn.distillation_heads import StudentWithHeads
from colakit.models.rnn.partial_embedding import PartialEmbedding

READ = torch.tensor([[7, 3, 29, 3], [0, 7, 7, 12]])


def full_embedding() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCAB, 5)


@pytest.mark.parametrize(
    "trained", [[], [3], [29, 0, 12, 7, 3], range(VOCAB)], ids=["none", "one", "some", "all"]
)
def test_partial_embedding_returns_every_token_s_row(trained: list[int]) -> None:
    full = full_embedding()
    part = PartialEmbedding(full, torch.tensor(list(trained), dtype=torch.long))
    everything = torch.arange(VOCAB).view(5, 6)
    for mode in (True, False):
        assert torch.equal(part.train(mode)(everything), full(everything))
    assert torch.equal(part.full_weight(), full.weight)
    assert part.weight.shape == (len(trained), 5)
    assert sum(p.numel() for p in part.parameters()) == full.weight.numel()
    assert {name: p.requires_grad for name, p in part.named_parameters()} == {"weight": True, "frozen": False}


def test_state_dict_is_that_of_the_full_embedding() -> None:
    full = full_embedding()
    part = PartialEmbedding(full, torch.tensor([4, 9]))
    assert part.state_dict().keys() == full.state_dict().keys()
    with torch.no_grad():
        part.weight.add_(1)
    twin = full_embedding()
    twin.load_state_dict(part.state_dict())
    expected = full.weight.detach().clone()
    expected[[4, 9]] += 1
    assert torch.equal(twin.weight.detach(), expected)


def test_partial_embedding_copies_the_rows() -> None:
    full = full_embedding()
    part = PartialEmbedding(full, torch.tensor([4, 9]))
    with torch.no_grad():
        full.weight.zero_()
    assert part.full_weight().abs().min() > 0


def trained(embedding: nn.Module, weight_decay: float) -> Tensor:
    """Return the rows after six steps on alternating rows of `READ`."""
    parameters = [p for p in embedding.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=weight_decay)
    goal = torch.linspace(-1, 1, 5)
    for step in range(6):
        optimizer.zero_grad()
        (embedding(READ[step % 2]) - goal).square().sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return embedding.state_dict()["weight"]


def test_trained_rows_get_the_updates_of_the_full_embedding() -> None:
    read = READ.unique()
    actual, expected = (trained(e, 0.1) for e in (PartialEmbedding(full_embedding(), read), full_embedding()))
    assert_close(actual[read], expected[read], atol=1e-6, rtol=0)  # norms are summed over fewer zeros
    assert (expected[read] - full_embedding().weight[read]).abs().min() > 0.01
    others = torch.ones(VOCAB, dtype=torch.bool).index_fill(0, read, False)
    assert torch.equal(actual[others], full_embedding().weight[others])
    partial, full = trained(PartialEmbedding(full_embedding(), read), 0.0), trained(full_embedding(), 0.0)
    assert_close(partial, full, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [{}, {"num_embeddings": 12}], ids=["all", "frequent"])
def test_train_rows_preserves_logits_and_state_dict(shape: dict[str, int]) -> None:
    model, mask = student(**shape), torch.ones_like(READ)
    if shape:
        model.embed_only(range(2, 13))
    before, logits = model.state_dict(), model(READ, mask)
    total = count_parameters(model).total
    model.train_rows(READ[0])
    assert torch.equal(model(READ, mask), logits)
    assert count_parameters(model).total == total
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_token_heads_predict_among_the_trained_rows() -> None:
    torch.manual_seed(0)
    model, mask = student(dropout=0.0), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    ids = torch.tensor([[7, 3, 29, 3], [12, 7, 7, 0]])  # 0 is padding
    heads = StudentWithHeads(model, predicts_tokens=True)
    model.train_rows(torch.tensor([3, 7, 12, 29]))
    actual = heads(ids, mask).nll
    assert actual is not None
    states, table = model.encode(ids, mask).first, whole_table(model)[[3, 7, 12, 29]]
    number = {3: 0, 7: 1, 12: 2, 29: 3}
    total = torch.zeros(())
    for row, length in enumerate((4, 3)):
        for position in range(length):
            for head, seen, step in ((0, states[row, position, :7], 1), (1, states[row, position, 7:], -1)):
                if 0 <= position + step < length:
                    logits = table @ heads.to_tokens[head](seen)
                    target = torch.tensor(number[int(ids[row, position + step])])
                    total = total + nn.functional.cross_entropy(logits, target)
    assert_close(actual, total, atol=1e-4, rtol=1e-5)


def whole_table(model: nn.Module) -> Tensor:
    return model.state_dict()["embedding.weight"]
