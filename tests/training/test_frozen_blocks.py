"""Frozen blocks below the first adapted one: no training, no dropout, computed once."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from colakit.data.batches import Examples, pad_states
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.forward import compute_logits, compute_states
from colakit.kernels.linear_cross_entropy import IGNORE_INDEX
from colakit.kernels.native import find_compiler
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.runtime.device import Compute
from colakit.training.objectives import classification

Run = Callable[..., tuple[int, str, str]]
LENGTHS = (5, 9, 1, 7, 12, 3, 3, 8)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}  # fp32 sums in another order


def classifier(layers: tuple[int, ...] | None, dropout: float = 0.0) -> GPTClassifier:
    """Return a classifier of four blocks with nonzero adapters in some of them."""
    torch.manual_seed(0)
    config = GPTConfig(400, 16, 16, 4, 2, None, "gelu_new", 1e-5, dropout, dropout, dropout)
    model = GPT(config).classifier(2)
    inject(model, LoRAConfig(rank=2, layers_to_transform=layers))
    train_modules(model, layers=layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def examples() -> Examples:
    generator = np.random.default_rng(0)
    tokens = Tokens.pack([generator.integers(0, 50, size=length) for length in LENGTHS])
    return Examples(tokens, generator.integers(0, 2, size=len(LENGTHS)))


def with_states(data: Examples, model: GPTClassifier, compute: Compute) -> Examples:
    return replace(data, states=compute_states(model, data.tokens, compute, batch_size=3))


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [(None, 0), ((0, 3), 0), ((1,), 1), ((2, 3), 2), ((3,), 3)],
)
def test_blocks_below_the_first_adapted_one_are_frozen(layers: tuple[int, ...] | None, frozen: int) -> None:
    assert classifier(layers).transformer.num_frozen_blocks == frozen


def test_frozen_blocks_exclude_the_last_and_those_above_trained_ones() -> None:
    model = classifier((3,))
    model.requires_grad_(False)
    assert model.transformer.num_frozen_blocks == 3  # the last block computes last tokens only
    model.transformer.wpe.weight.requires_grad_(True)
    assert model.transformer.num_frozen_blocks == 0


def test_frozen_blocks_stay_in_eval_mode() -> None:
    model = classifier((2,), dropout=0.5)
    body = model.transformer
    assert [block.training for block in body.h] == [False, False, True, True]
    assert not body.drop.training
    assert body.h[2].attn.training
    model.eval().train()
    assert [block.training for block in body.h] == [False, False, True, True]
    assert all(module.training for module in classifier(None).modules())


@pytest.mark.parametrize(
    "kernels",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")),
    ],
)
@pytest.mark.parametrize("layers", [(1, 2, 3), (2,), (3,)])
def test_cached_states_preserve_loss_and_gradients(
    layers: tuple[int, ...], kernels: bool, fp32: Compute, tmp_path: Path
) -> None:
    compute = fp32.with_kernels("always", tmp_path) if kernels else fp32
    model = classifier(layers)
    data = examples()
    known = with_states(data, model, compute)
    found: list[list[Tensor]] = []
    for each in (data, known):
        learner = copy.deepcopy(model)
        with compute.autocast():
            loss = classification(learner, each.batch([4, 0, 3, 7, 2]))
        loss.total.backward()
        assert loss.logits is not None
        grads = [p.grad for p in learner.parameters() if p.requires_grad]
        assert all(grad is not None for grad in grads)
        found.append([loss.total.detach(), loss.logits, *(grad for grad in grads if grad is not None)])
    assert len(found[0]) > 2 + 8 * len(layers)
    assert max(grad.abs().max() for grad in found[0][2:]) > 0.1
    assert_close(found[1], found[0], **TIGHT)


def test_cached_states_keep_dropout_in_the_upper_blocks(fp32: Compute) -> None:
    model, data = classifier((2, 3), dropout=0.3), examples()
    losses = []
    for each in (data, with_states(data, model, fp32)):
        torch.manual_seed(1)
        with fp32.autocast():
            losses.append(classification(model, each.batch([4, 0, 3])).total.detach())
    assert_close(losses[1], losses[0], **TIGHT)
    with fp32.autocast():
        again = classification(model, data.batch([4, 0, 3])).total.detach()
    assert not torch.isclose(again, losses[0], rtol=1e-3), "nothing was dropped"


def test_cached_states_do_not_depend_on_the_batch(fp32: Compute) -> None:
    model, data = classifier((2, 3)), examples()
    states = compute_states(model, data.tokens, fp32, batch_size=3)
    assert states.shape == (sum(LENGTHS), 16)
    assert states.dtype == torch.float32
    assert not states.is_inference()  # autograd needs normal tensors
    for i in range(len(LENGTHS)):
        ids = torch.from_numpy(data.tokens.sentence(i)).long()[None]
        x = model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.shape[1]]
        for block in model.transformer.h[:2]:
            x = block(x, None)
        assert_close(pad_states(states, data.tokens, np.array([i])), x.detach(), **TIGHT)


def test_evaluation_from_cached_states_is_identical(fp32: Compute) -> None:
    model, data = classifier((2, 3), dropout=0.3), examples()
    states = compute_states(model, data.tokens, fp32)
    wanted = compute_logits(model, data.tokens, fp32)
    np.testing.assert_array_equal(compute_logits(model, data.tokens, fp32, states=states), wanted)


def test_cached_states_preserve_the_language_modelling_loss(fp32: Compute) -> None:
    model, data = classifier((2, 3)), examples()
    batch = with_states(data, model, fp32).batch([4, 0, 3])
    targets = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORE_INDEX)
    known, plain = (
        model(batch.input_ids, batch.attention_mask, targets=targets, states=states)
        for states in (batch.states, None)
    )
    assert_close(known, plain, **TIGHT)


def test_layers_to_transform_survives_saving(tmp_path: Path, toy: Path) -> None:
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    for layers in (None, (2, 3)):
        lora = LoRAConfig(rank=2, layers_to_transform=layers)
        saved = SentenceClassifier(classifier(layers).eval(), tokenizer, ("no", "yes"), 16, lora=lora)
        saved.save(path := tmp_path / f"{layers}.pt")
        found = load_classifier(path)
        assert found.lora == lora
        assert found.fingerprint() == saved.fingerprint()
        assert found.model.transformer.num_frozen_blocks == 0 if layers is None else 2  # type: ignore[union-attr]


def test_run_time_includes_computing_the_states(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any, **options: Any) -> Tensor:
        time.sleep(1.5)
        return compute_states(*arguments, **options)

    monkeypatch.setattr("colakit.training.classifier_trainer.compute_states", slowly)
    assert colakit(*tuning(toy, "--out", tmp_path / "run"))[0] == 0
    assert summary(tmp_path / "run")["seconds"] > 3  # states of train and val


def test_batch_slices_states_with_tokens(fp32: Compute) -> None:
    model = classifier((2, 3))
    data = with_states(examples(), model, fp32)
    assert data.states is not None
    whole = data.batch([1, 5, 4, 2])
    for part, index in zip(whole.split(2), ([1, 5], [4, 2]), strict=True):
        wanted = pad_states(data.states, data.tokens, np.array(index))
        assert part.states is not None
        assert part.states.shape[:2] == part.input_ids.shape
        assert torch.equal(part.states, wanted)
    wide = whole.with_width(16)
    assert wide.states is not None
    assert wide.states.shape == (4, 16, 16)
    assert torch.equal(wide.states[:, :12], whole.states)  # type: ignore[arg-type]
    assert not wide.states[:, 12:].any()
    with torch.no_grad():
        narrow, padded = (classification(model.eval(), each).total for each in (whole, wide))
    assert_close(narrow, padded, **TIGHT)


# -- command line


def tuning(toy: Path, *more: object) -> Sequence[object]:
    common = ["finetune", "--base", toy / "base", "--data", toy / "corpus", "--epochs", 2, "--batch-size", 16]
    return [*common, "--set", "finetune.evaluate_every_epochs=1", "--layers-to-transform", "1", *more]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())  # type: ignore[no-any-return]


def test_finetune_with_cached_states_trains_identically(toy: Path, colakit: Run, tmp_path: Path) -> None:
    plain = ("--precision", "fp32", "--set", "finetune.base_dropout=0.1")
    code, _, err = colakit(*tuning(toy, *plain, "--out", tmp_path / "once"))
    assert code == 0, err
    assert "frozen blocks 0 to 0: computed once" in " ".join(err.split())
    never = ("--set", "finetune.frozen_cache_mib=0")
    code, out, err = colakit(*tuning(toy, "--dry-run"))
    assert code == 0, err
    assert "blocks below 1 are frozen" in out
    code, _, err = colakit(*tuning(toy, *plain, *never, "--out", tmp_path / "every"))
    assert code == 0, err
    assert "computed at every step" in " ".join(err.split())
    once, every = (summary(tmp_path / name) for name in ("once", "every"))
    for split in once["splits"]:
        assert once["splits"][split]["loss"] == pytest.approx(every["splits"][split]["loss"], rel=1e-3)
    adapted = json.loads((tmp_path / "once/adapter/adapter_config.json").read_text())
    assert adapted["layers_to_transform"] == [1]
    code, _, err = colakit(*tuning(toy, *plain, *never, "--resume", "--out", tmp_path / "once"))
    assert code == 2
    assert "finetune.frozen_cache_mib was 1024, is 0" in " ".join(err.split())


@pytest.mark.usefixtures("heeds_interrupts")
def test_resumed_run_computes_the_same_states(
    toy: Path, colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colakit.training.trainer import Trainer

    assert colakit(*tuning(toy, "--out", tmp_path / "whole"))[0] == 0
    after_step = Trainer._after_step

    def interrupting(self: Any, report: Any, bar: Any) -> None:
        after_step(self, report, bar)
        if report.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_after_step", interrupting)
    assert colakit(*tuning(toy, "--out", tmp_path / "parts"))[0] == 130
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    assert colakit("finetune", "--resume", "--out", tmp_path / "parts")[0] == 0
    assert (tmp_path / "parts/ckpt.pt").read_bytes() == (tmp_path / "whole/ckpt.pt").read_bytes()


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("2", "lora.layers_to_transform: the model has no block 2"),
        ("-1", "must be at least 0"),
        ("first", "must be a whole number"),
        ("true", "a boolean is not allowed here"),
    ],
)
def test_missing_blocks_are_refused(value: str, fault: str, toy: Path, colakit: Run) -> None:
    named = ["--set", f"lora.layers_to_transform=[{value}]"]
    code, _, err = colakit("finetune", "--base", toy / "base", "--data", toy / "corpus", *named, "--dry-run")
    assert code == 2
    assert fault in " ".join(err.split())
