"""The fast operations equal the plain ones, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from colakit.kernels import fused
from colakit.kernels import linear_cross_entropy as cross_entropy
from colakit.kernels.attention import short_attention
from colakit.kernels.fused import Dropout, drop, gelu_tanh, lora_linear
from colakit.kernels.linear_cross_entropy import IGNORE_INDEX, linear_cross_entropy
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT

TIGHT = {"rtol": 1e-5, "atol": 1e-5}  # fp32; sums are taken in another order


def problem(sentences: int, tokens: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (B, T, 6), an output layer (11, 6), and targets (B, T) of which a third do not count."""
    torch.manual_seed(sentences)
    hidden = torch.randn(sentences, tokens, 6, requires_grad=True)
    targets = torch.randint(11, (sentences, tokens))
    targets.view(-1)[::3] = IGNORE_INDEX
    return hidden, torch.randn(11, 6, requires_grad=True), targets


def plain_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sentence (B,), from all logits at once."""
    logits = (hidden @ weight.t()).transpose(1, 2)  # (B, V, T)
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX).sum(dim=1)


def same_gradients(actual: Tensor, expected: Tensor, leaves: tuple[Tensor, Tensor]) -> None:
    wanted = torch.autograd.grad(3 * expected, leaves)
    for one, two in zip(torch.autograd.grad(3 * actual, leaves), wanted, strict=True):
        assert_close(one, two, **TIGHT)


@pytest.mark.parametrize("sentences", [1, 2, 3, 7])
def test_linear_cross_entropy_is_cross_entropy_of_the_product(
    sentences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 6)  # a whole chunk, a ragged one, several
    hidden, weight, targets = problem(sentences)
    expected = plain_nll(hidden, weight, targets).sum()
    actual = linear_cross_entropy(hidden, weight, targets)
    assert_close(actual, expected, **TIGHT)
    same_gradients(actual, expected, (hidden, weight))


@pytest.mark.parametrize("rows", [1, 6, 100])  # a pair is never parted, however small the chunk
def test_a_loss_of_pairs_of_sentences_has_its_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", rows)
    hidden, weight, targets = problem(sentences=8)

    def product_of_pairs(nll: Tensor) -> Tensor:
        return nll.prod(dim=1).sum()

    expected = product_of_pairs(plain_nll(hidden, weight, targets).view(-1, 2))
    pairs = hidden.unflatten(0, (-1, 2)), weight, targets.unflatten(0, (-1, 2))
    actual = linear_cross_entropy(*pairs, product_of_pairs)
    assert_close(actual, expected, **TIGHT)
    same_gradients(actual, expected, (hidden, weight))


def test_linear_cross_entropy_without_gradients_is_the_same_number() -> None:
    hidden, weight, targets = problem(4)
    with_gradients = linear_cross_entropy(hidden, weight, targets)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets), with_gradients)


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, targets = problem(4)
    wanted = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)
    loss = linear_cross_entropy(hidden, weight.detach(), targets)
    assert_close(torch.autograd.grad(loss, hidden), wanted)
    loss = linear_cross_entropy(hidden.detach(), weight, targets)
    assert torch.autograd.grad(loss, weight)[0].abs().sum() > 0


def test_under_autocast_the_gradients_keep_their_parameters_types() -> None:
    hidden, weight, targets = problem(4)
    plain = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = linear_cross_entropy(hidden, weight, targets)
    rounded.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert_close(rounded, plain, rtol=0.02, atol=0.0)  # bf16 keeps eight bits
    assert not torch.equal(rounded, plain)


@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_short_attention_is_scaled_dot_product_attention(tokens: int) -> None:
    torch.manual_seed(tokens)
    qkv = torch.randn(2, tokens, 3, 3, 8, requires_grad=True)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    actual = short_attention(qkv)
    assert_close(actual, expected, **TIGHT)
    wanted = torch.autograd.grad(expected.square().sum(), qkv)
    assert_close(torch.autograd.grad(actual.square().sum(), qkv), wanted, **TIGHT)


def test_short_attention_drops_and_rescales_probabilities() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(4, 64, 3, 4, 8)
    qkv[:, :, 2] = 1.0
    dropped = short_attention(qkv, dropout=0.5)
    assert (dropped[:, 0] == 0).any()  # the first token sees itself alone
    assert_close(dropped.mean(), torch.tensor(1.0), rtol=0.0, atol=0.1)  # the mean survives


def test_the_last_block_on_one_position_is_that_position_of_the_whole() -> None:
    torch.manual_seed(0)
    config = GPTConfig(31, 16, 16, 3, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0)
    body = GPT(config).transformer
    ids, last = torch.randint(31, (4, 9)), torch.tensor([8, 0, 3, 5])
    expected, actual = body(ids)[torch.arange(4), last], body.forward_last(ids, last)
    assert_close(actual, expected, **TIGHT)
    parameters = list(body.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    for one, two in zip(torch.autograd.grad(actual.square().sum(), parameters), wanted, strict=True):
        assert_close(one, two, **TIGHT)


@pytest.mark.parametrize("compiled", [False, True])
def test_gelu_is_gelu(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 1000)  # several chunks, the last one short
    x = torch.linspace(-9, 9, 4001, requires_grad=True)
    actual = (torch.compile(gelu_tanh) if compiled else gelu_tanh)(x)
    expected = F.gelu(x, approximate="tanh")
    assert_close(actual, expected, **TIGHT)
    one, two = (torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected))
    assert_close(one, two, **TIGHT)


@pytest.mark.parametrize("with_bias", [True, False])
def test_lora_linear_is_the_layer_plus_the_scaled_update(with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 6, requires_grad=True), torch.randn(7, 6)
    lora_a, lora_b = torch.randn(2, 6, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    bias = torch.randn(7) if with_bias else None
    expected = F.linear(x, weight, bias) + 0.5 * F.linear(F.linear(x, lora_a), lora_b)
    actual = lora_linear(x, weight, bias, lora_a, lora_b, 0.5)
    assert_close(actual, expected, **TIGHT)
    inputs = (x, lora_a, lora_b)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for one, two in zip(torch.autograd.grad(actual.square().sum(), inputs), wanted, strict=True):
        assert_close(one, two, **TIGHT)


def test_lora_linear_under_autocast_computes_in_bf16_and_learns_in_fp32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(7, 6).bfloat16()
    lora_a, lora_b = torch.randn(2, 6, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_linear(x, weight, None, lora_a, lora_b, 0.5)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for tensor in (x, lora_a, lora_b):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype: torch.dtype, probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(100_003, dtype=dtype, requires_grad=True)  # no multiple of the four draws of a word
    layer = Dropout(probability)
    y = layer(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(probability, abs=5 * (probability * (1 - probability) / 1e5) ** 0.5)
    scale = torch.tensor(1 / (1 - probability)).to(dtype)
    assert_close(y[y != 0], scale.expand(int((y != 0).sum())), rtol=1e-2, atol=0.0)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(layer.eval()(x), x)


def test_neighbouring_draws_of_dropout_are_independent() -> None:
    torch.manual_seed(0)
    kept = drop(torch.ones(100_000), 0.5) != 0
    for lag in (1, 2, 3, 4):  # four draws come from one word
        agreeing = (kept[lag:] == kept[:-lag]).double().mean().item()
        assert agreeing == pytest.approx(0.5, abs=5 * 0.5 / 1e5**0.5)


def test_compiling_changes_neither_loss_nor_gradients() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(31, 16, 16, 2, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0))
    ids = torch.randint(31, (3, 9))
    actual = []
    for _ in range(2):
        model.zero_grad()
        loss = model(ids[:, :-1], targets=ids[:, 1:])
        loss.backward()
        actual.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.transformer.compile()
    for plain, compiled in zip(*actual, strict=True):
        assert plain is not None
        assert_close(compiled, plain, **TIGHT)


def test_the_body_is_compiled_whole() -> None:
    model = GPT(GPTConfig(31, 16, 16, 2, 2, embedding_dropout=0, attention_dropout=0, residual_dropout=0))
    body, ids = model.transformer, torch.randint(31, (3, 9))
    expected = body(ids)
    assert_close(torch.compile(body, backend="eager", fullgraph=True)(ids), expected, **TIGHT)
