"""EMA of the weights, its checkpoints, and the average of start and end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from colakit.inference.classifier import load_classifier
from colakit.training.averaging import EMA, StartAverage

Run = Callable[..., tuple[int, str, str]]


def walk(model: nn.Module, steps: int, average: EMA) -> list[torch.Tensor]:
    """Change the weights at random; return them after each step."""
    seen = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
        average.update(step)
        seen.append(model.weight.detach().clone())
    return seen


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_ema_is_the_weighted_sum_of_all_steps(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = EMA(model, decay)
    expected = model.weight.detach().clone()
    for step, weight in enumerate(walk(model, 30, average), start=1):
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight
    assert list(average.state()) == ["weight"]
    assert_close(average.state()["weight"], expected)


def test_weights_are_restored_after_averaging() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = EMA(model, 0.9)
    last = walk(model, 5, average)[-1]
    averaged = average.state()["weight"]
    with contextlib.suppress(ZeroDivisionError), average.applied():
        assert torch.equal(model.weight, averaged)
        assert not torch.equal(model.weight, last)
        raise ZeroDivisionError
    assert torch.equal(model.weight, last)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert_close(model.weight.detach(), last - 0.1)
    assert torch.equal(average.state()["weight"], averaged)


def test_restored_average_continues_as_uninterrupted() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = EMA(model, 0.9)
    walk(model, 4, average)
    again = EMA(model, 0.9)
    again.restore(average.state())
    walk(model, 1, average)
    again.update(1)
    assert torch.equal(average.state()["weight"], again.state()["weight"])
    with pytest.raises(KeyError):
        again.restore({})


def test_run_saves_the_averaged_weights_it_evaluated(toy: Path, colakit: Run, tmp_path: Path) -> None:
    common = ["train-scratch", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 2, "--json"]
    summaries = {}
    for name, decay in (("plain", "null"), ("averaged", "0.9")):
        folder = tmp_path / name
        code, out, err = colakit(*common, "--set", f"student_training.ema_decay={decay}", "--out", folder)
        assert code == 0, err
        summaries[name] = json.loads(out)
    plain, averaged = (load_classifier(tmp_path / name).model for name in summaries)
    assert not torch.equal(plain.score.weight, averaged.score.weight)
    for summary in summaries.values():
        assert summary["best"]["mcc"] == summary["splits"]["val"]["mcc"]
        assert summary["best"]["loss"] == pytest.approx(summary["splits"]["val"]["loss"], abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_start_and_end_are_averaged_and_the_end_restored(share: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    average = StartAverage(model, share)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    end = {name: value.clone() for name, value in model.state_dict().items()}
    with average.applied():
        for name, value in model.state_dict().items():
            assert_close(value, share * start[name] + (1 - share) * end[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, end[name])
