"""Text generation: effect of each sampling option, and invariance to batching and adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from colakit.inference.generation import generate_tokens, sample
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject
from colakit.runtime.device import Compute

POSITIONS = 16
DRAWS = 20_000
PROBS = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])  # likeliest first: 1, 3, 4, 2, 0


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=40, num_positions=POSITIONS, width=16, num_layers=2, num_heads=2))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return gpt.eval()


@pytest.fixture
def prompt() -> Tensor:
    return torch.tensor([[3, 1, 4], [1, 5, 9]])


def text(
    model: GPT, prompt: Tensor, compute: Compute, *, seed: int = 0, num: int = 10, **knobs: Any
) -> Tensor:
    """Return what `generate_tokens` yields as (B, num) tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = generate_tokens(model, prompt, max_new_tokens=num, compute=compute, generator=generator, **knobs)
    return torch.stack(list(tokens), dim=1)


@torch.no_grad()
def greedy_without_cache(model: GPT, prompt: Tensor, num: int) -> Tensor:
    """Return the greedy continuation; a text beyond the positions loses its older half."""
    window, result = prompt[:, -POSITIONS:], []
    for _ in range(num):
        if window.shape[1] > POSITIONS:
            window = window[:, -(POSITIONS // 2) :]
        result.append(model(window)[:, -1].argmax(dim=-1))
        window = torch.cat([window, result[-1][:, None]], dim=1)
    return torch.stack(result, dim=1)


def drawn(**knobs: Any) -> Tensor:
    """Return how often each token of `PROBS` is drawn, as shares of `DRAWS`."""
    usual = {"temperature": 1.0, "top_k": None, "top_p": None}
    rows = PROBS.log().expand(DRAWS, -1)
    tokens = sample(rows, **{**usual, **knobs}, generator=torch.Generator().manual_seed(0))
    return torch.bincount(tokens, minlength=len(PROBS)) / DRAWS


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 0},
        {"temperature": 0, "top_k": 5, "top_p": 0.5},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 1e-4},
    ],
    ids=str,
)
def test_sharpest_setting_of_each_option_is_greedy(
    model: GPT, prompt: Tensor, fp32: Compute, knobs: dict[str, Any]
) -> None:
    assert torch.equal(text(model, prompt, fp32, **knobs), greedy_without_cache(model, prompt, 10))


@pytest.mark.parametrize(
    ("knobs", "allowed"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 50}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.6}, {1, 3}),  # 0.4 falls short, 0.4 + 0.25 reaches it
        ({"top_p": 0.9}, {1, 3, 4, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),
        ({"top_k": 2, "top_p": 0.9}, {1, 3}),
        ({"temperature": 2.0, "top_k": 3}, {1, 3, 4}),
    ],
    ids=str,
)
def test_samples_follow_the_renormalised_distribution(knobs: dict[str, Any], allowed: set[int]) -> None:
    shares = drawn(**knobs)
    assert set(shares.nonzero().flatten().tolist()) == allowed
    probs = PROBS ** (1 / knobs.get("temperature", 1.0))
    expected = torch.tensor([probs[i] if i in allowed else 0.0 for i in range(len(probs))])
    # five standard errors of a share at its widest, √(¼ / 20 000), come to 0.018
    torch.testing.assert_close(shares, expected / expected.sum(), atol=0.018, rtol=0)


def test_top_k_and_top_p_act_per_row() -> None:
    rows = torch.stack([PROBS, PROBS.flip(0)]).log().repeat(500, 1)
    for knobs in ({"top_k": 1, "top_p": None}, {"top_k": None, "top_p": 0.3}):
        tokens = sample(rows, 1.0, **knobs, generator=None)  # type: ignore[arg-type]
        assert torch.equal(tokens, torch.tensor([1, 3]).repeat(500))


def test_same_seed_gives_same_text(model: GPT, prompt: Tensor, fp32: Compute) -> None:
    knobs = {"temperature": 1.0, "top_k": 20, "top_p": 0.9}
    first = text(model, prompt, fp32, seed=1, **knobs)
    torch.manual_seed(99)  # torch's own generator has no part in it
    assert torch.equal(text(model, prompt, fp32, seed=1, **knobs), first)
    assert not torch.equal(text(model, prompt, fp32, seed=2, **knobs), first)


@pytest.mark.parametrize("length", [1, 3, POSITIONS - 1, POSITIONS, POSITIONS + 5])
def test_text_continues_beyond_the_model_s_positions(model: GPT, length: int, fp32: Compute) -> None:
    prompt = torch.randint(0, 40, (2, length), generator=torch.Generator().manual_seed(3))
    num = 3 * POSITIONS
    assert torch.equal(
        text(model, prompt, fp32, num=num, temperature=0), greedy_without_cache(model, prompt, num)
    )


def test_samples_do_not_depend_on_the_batch(model: GPT, prompt: Tensor, fp32: Compute) -> None:
    together = text(model, prompt, fp32, temperature=0)
    alone = [text(model, row[None], fp32, temperature=0) for row in prompt]
    assert torch.equal(together, torch.cat(alone))


def test_samples_end_at_the_stop_token(model: GPT, prompt: Tensor, fp32: Compute) -> None:
    free = text(model, prompt, fp32, num=40, temperature=1.0)
    stop_id = int(free[0, 4])
    stopped = text(model, prompt, fp32, num=400, temperature=1.0, stop_id=stop_id)
    ends = [row.tolist().index(stop_id) for row in stopped]
    assert ends[0] <= 4
    assert stopped.shape[1] == max(ends) + 1 < 400
    for row, end in zip(stopped, ends, strict=True):
        assert (row[end:] == stop_id).all()


def test_dropping_stopped_samples_preserves_the_others(model: GPT, fp32: Compute) -> None:
    prompts = torch.randint(40, (24, 3), generator=torch.Generator().manual_seed(1))
    free = text(model, prompts, fp32, num=40, temperature=0)
    stop_id = int(free[:, :20].flatten().mode().values)
    ends = [row.index(stop_id) if stop_id in row else 40 for row in free.tolist()]
    assert len(set(ends)) > 2, "the batch shrinks"
    assert 3 + max(ends) > POSITIONS, "some outgrow the positions"
    stopped = text(model, prompts, fp32, num=40, temperature=0, stop_id=stop_id)
    for row, whole, end in zip(stopped, free, ends, strict=True):
        assert (row[:end] == whole[:end]).all()
        assert (row[end:] == stop_id).all()


def test_fresh_adapters_do_not_change_the_text(model: GPT, prompt: Tensor, fp32: Compute) -> None:
    before = text(model, prompt, fp32, temperature=1.0)
    inject(model, LoRAConfig(dora=True, dropout=0.5))
    assert torch.equal(text(model, prompt, fp32, temperature=1.0), before)


def test_consumer_may_train_between_tokens(model: GPT, prompt: Tensor, fp32: Compute) -> None:
    tokens = generate_tokens(model, prompt, max_new_tokens=3, compute=fp32)
    for _ in tokens:
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
