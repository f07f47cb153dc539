"""Objectives and learning-rate schedules, against reference implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close
from transformers.loss.loss_utils import ForCausalLMLoss

from colakit.data.batches import UNLABELLED, Batch
from colakit.models.rnn.distillation_heads import StudentOutput
from colakit.training.objectives import (
    Objective,
    classification,
    constant,
    distillation,
    language_modelling,
    line,
    logit_mse,
    soft_kl,
    supervised,
)
from colakit.training.schedule import warmup_then

NUM_SENTENCES, NUM_LABELS = 7, 3
# Two fp32 formulas of the same value differ by rounding alone, a few units in the seventh digit.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Saying(nn.Module):
    """A model whose logits are its parameter, independent of the input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.logits


class Bigrams(nn.Module):
    """A language model with a context of one token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = self.table(input_ids)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@pytest.fixture
def student() -> Saying:
    torch.manual_seed(0)
    return Saying(2 * torch.randn(NUM_SENTENCES, NUM_LABELS))


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    ids = torch.ones(NUM_SENTENCES, 4, dtype=torch.int64)
    labels = torch.randint(NUM_LABELS, (NUM_SENTENCES,))
    return Batch(ids, ids, labels, 3 * torch.randn(NUM_SENTENCES, NUM_LABELS))


def value_and_gradient(objective: Objective, model: Saying, batch: Batch) -> tuple[Tensor, Tensor]:
    total = objective(model, batch).total
    (gradient,) = torch.autograd.grad(total, model.logits)
    return total.detach(), gradient


def formula_and_gradient(total: Tensor, model: Saying) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(total, model.logits)
    return total.detach(), gradient


def test_classification_is_summed_cross_entropy(student: Saying, batch: Batch) -> None:
    loss = classification(student, batch)
    assert loss.logits is not None
    assert not loss.logits.requires_grad
    assert torch.equal(loss.logits, student.logits)
    actual = value_and_gradient(classification, student, batch)
    expected = -Categorical(logits=student.logits).log_prob(batch.labels).sum()
    assert_close(actual, formula_and_gradient(expected, student), **CLOSE)


@pytest.mark.parametrize("soft_loss", ["kl", "mse"])
def test_kd_weight_zero_is_cross_entropy(student: Saying, batch: Batch, soft_loss: str) -> None:
    objective = distillation(kd_weight=constant(0.0), temperature=constant(2.0), soft_loss=soft_loss)
    actual = value_and_gradient(objective, student, batch)
    expected = value_and_gradient(classification, student, batch)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_kd_weight_one_is_squared_temperature_times_kl(
    student: Saying, batch: Batch, temperature: float
) -> None:
    assert batch.teacher_logits is not None
    actual = value_and_gradient(
        distillation(kd_weight=constant(1.0), temperature=constant(temperature)), student, batch
    )
    teacher = Categorical(logits=batch.teacher_logits / temperature)
    ours = Categorical(logits=student.logits / temperature)
    expected = temperature**2 * kl_divergence(teacher, ours).sum()
    assert_close(actual, formula_and_gradient(expected, student), **CLOSE)


def test_kd_weight_one_by_mse_is_the_mean_over_classes(student: Saying, batch: Batch) -> None:
    assert batch.teacher_logits is not None
    objective = distillation(kd_weight=constant(1.0), temperature=constant(9.0), soft_loss="mse")
    expected = F.mse_loss(student.logits, batch.teacher_logits) * NUM_SENTENCES
    actual = value_and_gradient(objective, student, batch)
    assert_close(actual, formula_and_gradient(expected, student), **CLOSE)


@pytest.mark.parametrize("soft_loss", ["kl", "mse"])
@pytest.mark.parametrize("kd_weight", [0.25, 0.5, 0.9])
def test_distillation_is_linear_in_kd_weight(
    student: Saying, batch: Batch, soft_loss: str, kd_weight: float
) -> None:
    def at(weight: float) -> Tensor:
        objective = distillation(kd_weight=constant(weight), temperature=constant(2.0), soft_loss=soft_loss)
        return value_and_gradient(objective, student, batch)[1]

    assert_close(at(kd_weight), (1 - kd_weight) * at(0.0) + kd_weight * at(1.0), **CLOSE)


@given(
    logits=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=2), min_size=1, max_size=5),
    temperature=st.floats(0.25, 16),
)
def test_kl_of_equal_distributions_is_zero_and_flat(logits: list[list[float]], temperature: float) -> None:
    teacher = torch.tensor(logits)
    student = teacher.clone().requires_grad_()
    loss = soft_kl(student, teacher, temperature).sum()
    loss.backward()
    assert loss.item() == 0
    # The softmax of p and its copy in the gradient round differently, by one unit of fp32 at τ = 16.
    assert_close(student.grad, torch.zeros_like(teacher), rtol=0, atol=16 * 2**-22)


def test_kl_is_not_symmetric_and_the_teacher_comes_first() -> None:
    teacher, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    probs = teacher.softmax(-1)
    expected = (probs * (probs.log() - math.log(0.5))).sum()
    assert_close(soft_kl(student, teacher, 1.0)[0], expected, **CLOSE)
    assert not math.isclose(soft_kl(teacher, student, 1.0).item(), expected.item(), rel_tol=0.1)


def test_kl_at_high_temperature_is_the_squared_error_of_centred_logits(batch: Batch, student: Saying) -> None:
    """Hinton et al. 2015, eq. 4, halved since it gives the gradient: τ²·KL → Σ(zₛ-zₜ)²/2C, both centred."""
    assert batch.teacher_logits is not None
    ours, other = (
        x - x.mean(-1, keepdim=True) for x in (student.logits.double(), batch.teacher_logits.double())
    )
    # The series of KL in 1/τ goes on with a term of order 1/τ, here about 1e-4 of the value.
    assert_close(
        soft_kl(ours, other, 1e4), 0.5 * (ours - other).square().sum(-1) / NUM_LABELS, rtol=1e-3, atol=0
    )


def test_soft_loss_of_a_sentence_does_not_depend_on_the_batch(student: Saying, batch: Batch) -> None:
    assert batch.teacher_logits is not None
    for soft in (lambda s, t: soft_kl(s, t, 2.0), logit_mse):
        parts = [
            soft(student.logits[part], batch.teacher_logits[part]) for part in (slice(0, 2), slice(2, None))
        ]
        assert_close(torch.cat(parts), soft(student.logits, batch.teacher_logits), **CLOSE)


def test_unlabelled_sentences_have_the_soft_loss_only(student: Saying, batch: Batch) -> None:
    assert batch.labels is not None
    assert batch.teacher_logits is not None
    unlabelled = torch.arange(NUM_SENTENCES) % 2 == 0
    mixed = replace(batch, labels=batch.labels.masked_fill(unlabelled, UNLABELLED))
    objective = distillation(kd_weight=constant(0.25), temperature=constant(2.0))
    hard = F.cross_entropy(student.logits, batch.labels, reduction="none")
    soft = soft_kl(student.logits, batch.teacher_logits, 2.0)
    expected = torch.where(unlabelled, soft, 0.75 * hard + 0.25 * soft).sum()
    assert_close(objective(student, mixed).total, expected, **CLOSE)


def test_kd_weight_and_temperature_change_linearly(student: Saying, batch: Batch) -> None:
    moving = distillation(kd_weight=line(1.0, 0.0), temperature=line(4.0, 1.0))
    for progress, weight, temperature in ((0.0, 1.0, 4.0), (0.5, 0.5, 2.5), (1.0, 0.0, 1.0)):
        still = distillation(kd_weight=constant(weight), temperature=constant(temperature))
        now = replace(batch, progress=progress)
        assert_close(moving(student, now).total, still(student, now).total, **CLOSE)


class Knowing(Saying):
    """A model with fixed logits, hidden states and token loss."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> StudentOutput:  # type: ignore[override]
        hidden = torch.tensor([[3.0, 4.0]]).expand(NUM_SENTENCES, 2)
        return StudentOutput(self.logits, hidden, torch.tensor(11.0))


def test_hidden_loss_is_cosine_and_token_loss_is_weighted(student: Saying, batch: Batch) -> None:
    model, plain = Knowing(student.logits.detach()), student
    states = torch.tensor([[8.0, 6.0]], dtype=torch.float16).expand(NUM_SENTENCES, 2)  # cosine 24/25
    rates = {"kd_weight": constant(0.5), "temperature": constant(2.0)}
    both = distillation(**rates, hidden_weight=2.0, lm_weight=constant(0.1))
    actual = both(model, replace(batch, teacher_hidden=states)).total
    expected = distillation(**rates)(plain, batch).total + 2.0 * NUM_SENTENCES / 25 + 1.1
    assert_close(actual, expected, **CLOSE)
    assert_close(
        supervised(constant(0.1))(model, batch).total, classification(plain, batch).total + 1.1, **CLOSE
    )


def language_batch(lengths: list[int], vocab_size: int) -> Batch:
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, vocab_size, mask.shape)
    return Batch(ids * mask, mask)


@pytest.mark.parametrize("lengths", [[5], [5, 5], [6, 2, 4], [3, 1]], ids=str)
def test_language_modelling_is_the_shifted_loss_of_transformers(lengths: list[int]) -> None:
    torch.manual_seed(0)
    model, batch = Bigrams(11), language_batch(lengths, 11)
    loss = language_modelling(model, batch)
    assert loss.logits is None
    targets = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    expected = ForCausalLMLoss(model(batch.input_ids), targets, vocab_size=11, num_items_in_batch=1)
    assert_close(loss.total, expected, **CLOSE)
    one, two = (torch.autograd.grad(total, model.table.weight)[0] for total in (loss.total, expected))
    assert_close(one, two, **CLOSE)


def test_padding_preserves_the_language_modelling_loss() -> None:
    torch.manual_seed(0)
    model, batch = Bigrams(11), language_batch([6, 2, 4], 11)
    alone = [
        language_modelling(model, Batch(ids[None, :length], mask[None, :length])).total
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        for length in [int(mask.sum())]
    ]
    assert_close(language_modelling(model, batch).total, torch.stack(alone).sum(), **CLOSE)


DECAYS = ("linear", "cosine", "constant")


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_short_decay_leaves_a_plateau(shape: str) -> None:
    lr_at = warmup_then(shape, warmup_steps=10, max_steps=110, decay=0.2)
    assert [lr_at(step) for step in range(10, 91)] == [1] * 81
    assert lr_at(100) == pytest.approx(0.5)
    assert lr_at(109) < 0.1
    assert lr_at(110) == pytest.approx(0)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 50])
def test_warmup_is_linear(decay: str, warmup_steps: int) -> None:
    lr_at = warmup_then(decay, warmup_steps=warmup_steps, max_steps=100)
    rates = [lr_at(step) for step in range(warmup_steps + 1)]
    rises = [rate * (warmup_steps + 1) for rate in rates]
    assert rises == pytest.approx([step + 1 for step in range(warmup_steps + 1)])
    assert lr_at(warmup_steps) == 1


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup_steps", [0, 7])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_lr_decays_from_peak_to_floor(decay: str, warmup_steps: int, floor: float) -> None:
    lr_at = warmup_then(decay, warmup_steps=warmup_steps, max_steps=100, floor=floor)
    rates = [lr_at(step) for step in range(101)]
    assert max(rates) == 1
    falling = rates[warmup_steps:]
    assert falling == sorted(falling, reverse=True)
    assert all(rate > 0 for rate in rates[:100])
    assert rates[100] == pytest.approx(1.0 if decay == "constant" else floor, abs=1e-12)
    assert lr_at(1000) >= 0


def test_lr_is_half_at_half_time() -> None:
    for decay in ("linear", "cosine"):
        assert warmup_then(decay, warmup_steps=20, max_steps=100)(60) == pytest.approx(0.5)


def test_cosine_is_the_published_curve() -> None:
    """Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, against torch's own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    lr_at = warmup_then("cosine", warmup_steps=0, max_steps=50, floor=0.2)
    for step in range(50):
        # torch computes the rate recursively, with fp64 rounding at every step.
        assert lr_at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("decay", DECAYS)
def test_schedule_may_be_warmup_only(decay: str) -> None:
    lr_at = warmup_then(decay, warmup_steps=5, max_steps=5)
    assert all(0 < lr_at(step) < 1 for step in range(5))
