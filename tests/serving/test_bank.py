"""A batch of many adapters gives each sentence the logits that its classifier gives it alone."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colakit.errors import ColakitError
from colakit.kernels.int8 import Int8Linear
from colakit.kernels.native import find_compiler
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import LoRAConfig, inject, lora_layers, train_modules
from colakit.runtime.device import Compute
from colakit.serving.bank import AdapterBank
from colakit.serving.rows import BASE, plan_stages

CPU = torch.device("cpu")
FP32 = Compute(CPU, torch.float32, "equality is checked in fp32")
SHAPE = {"vocab_size": 50, "num_positions": 70, "width": 32, "num_layers": 3, "num_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 128, "num_heads": 2},  # heads of 64, which the attention of the C kernels takes
    "llama": {"num_kv_heads": 2, "mlp_width": 48},
    "qwen3": {"num_kv_heads": 2, "mlp_width": 48, "qk_norm": True, "tied_embeddings": False},
}


def random_base(family: str) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(family=family, **{**SHAPE, **FAMILIES[family]})).eval()
    randomise(list(model.parameters()))
    return model


def randomise(parameters: list[Tensor]) -> None:
    for parameter in parameters:  # new tensors: a bank's are shared
        parameter.data = parameter.data + torch.randn_like(parameter.data) * 0.1


BASES = {family: random_base(family) for family in FAMILIES}


@dataclass(frozen=True)
class Task:
    """An adapter, in few words."""

    labels: int = 2
    rank: int = 2
    targets: str = "all-linear"
    layers: tuple[int, ...] | None = None
    norms: bool = True
    variant: str = "lora"
    seed: int = 0


def adapt(gpt: GPT, task: Task) -> GPTClassifier:
    """Return the task's classifier on `gpt`, with random weights for what trains."""
    torch.manual_seed(task.seed + 1)
    model = gpt.classifier(task.labels).eval()
    config = LoRAConfig(
        rank=task.rank,
        alpha=4.0,
        target_modules=(task.targets,),
        layers_to_transform=task.layers,
        dora=task.variant == "dora",
        rslora=task.variant == "rslora",
        init="pissa" if task.variant == "pissa" else "kaiming",
    )
    inject(model, config)
    train_modules(model, ("score", "all-norms") if task.norms else ("score",), layers=task.layers)
    randomise([parameter for parameter in model.parameters() if parameter.requires_grad])
    return model


tasks = st.builds(
    Task,
    labels=st.integers(2, 5),
    rank=st.integers(1, 9),
    targets=st.sampled_from(["all-linear", "attention"]),
    layers=st.sampled_from([None, (0,), (2,), (1, 2)]),
    norms=st.booleans(),
    variant=st.sampled_from(["lora", "rslora", "dora", "pissa"]),
    seed=st.integers(0, 99),
)


def resolved(task: Task, family: str) -> Task:
    names = {"gpt2": {"attention": "c_attn"}}.get(family, {"attention": "q_proj"})
    return Task(**{**vars(task), "targets": names.get(task.targets, task.targets)})


def sentence(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, length).astype(np.int32)


def alone(model: GPTClassifier, ids: np.ndarray) -> np.ndarray:
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.inference_mode():
        return model(tokens, torch.ones_like(tokens))[0].numpy()


@pytest.mark.parametrize("has_kernels", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    chosen=st.lists(tasks, min_size=1, max_size=8),
    requests=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 3), st.integers(1, 69)), min_size=1, max_size=32
    ),
)
def test_mixed_batch_equals_each_classifier_alone(
    compiled: Path, has_kernels: bool, family: str, chosen: list[Task], requests: list[tuple[int, int, int]]
) -> None:
    if has_kernels and find_compiler() is None:
        pytest.skip("needs a C compiler")
    compute = FP32.with_kernels("always" if has_kernels else "never", compiled, inference=True)
    bank = AdapterBank(copy.deepcopy(BASES[family]), compute)
    chosen = [resolved(task, family) for task in chosen]
    adapters = [bank.adapter_of(adapt(bank.base(), task), "test") for task in chosen]
    models = [adapt(copy.deepcopy(BASES[family]), task) for task in chosen]
    picked = [(number % len(chosen), sentence(seed, length)) for number, seed, length in requests]
    mixed = bank.logits([(adapters[number], ids) for number, ids in picked])
    for logits, (number, ids) in zip(mixed, picked, strict=True):
        np.testing.assert_allclose(logits, alone(models[number], ids), atol=1e-5, rtol=1e-5)


def test_32_adapters_in_one_batch_equal_each_alone() -> None:
    bank = AdapterBank(copy.deepcopy(BASES["gpt2"]), FP32)
    chosen = [Task(labels=2 + i % 3, rank=1 + i % 8, norms=i % 2 == 0, seed=i) for i in range(32)]
    adapters = [bank.adapter_of(adapt(bank.base(), task), "test") for task in chosen]
    picked = [(i % 32, sentence(i, 3 + i % 20)) for i in range(96)]
    mixed = bank.logits([(adapters[number], ids) for number, ids in picked])
    single = [bank.logits([(adapters[number], ids)])[0] for number, ids in picked]
    for actual, expected in zip(mixed, single, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_int8_base_gives_nearly_the_same_logits(family: str, variant: str) -> None:
    task, ids, logits = Task(variant=variant), sentence(0, 12), []
    for int8 in (False, True):
        bank = AdapterBank(copy.deepcopy(BASES[family]), Compute(CPU, torch.float32, "test", int8=int8))
        adapter = bank.adapter_of(adapt(bank.base(), task), "test")
        assert any(isinstance(module, Int8Linear) for module in bank.body.modules()) == int8
        logits.append(bank.logits([(adapter, ids)])[0])
    exact, quantized = logits
    assert not np.array_equal(exact, quantized)
    np.testing.assert_allclose(quantized, exact, rtol=0, atol=0.05 * np.abs(exact).max())


def test_blocks_below_all_changes_run_once_for_a_sentence() -> None:
    pairs = [(adapter, 0) for adapter in range(5)]
    first, second, third = plan_stages(pairs, [2] * 5, num_blocks=3)
    assert (first.block, first.rows) == (0, ((BASE, 0),))
    assert second.block == 2
    assert len(second.rows) == len(third.rows) == 5
    assert second.sources == (0,) * 5


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1),
    first_blocks=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_each_row_continues_its_own_sentence(pairs: list[tuple[int, int]], first_blocks: list[int]) -> None:
    stages = plan_stages(pairs, first_blocks, num_blocks=3)
    assert stages[-1].rows == tuple(sorted(set(pairs)))
    for before, stage in itertools.pairwise(stages):
        for (adapter, text), source in zip(stage.rows, stage.sources, strict=True):
            before_adapter, before_text = before.rows[source]
            assert before_text == text
            assert before_adapter in (adapter, BASE)
        for adapter, start, stop in stage.groups():
            assert {row[0] for row in stage.rows[start:stop]} == {adapter}


def test_trained_biases_are_served() -> None:
    bank = AdapterBank(copy.deepcopy(BASES["gpt2"]), FP32)
    models = [adapt(gpt, Task(targets="c_attn")) for gpt in (bank.base(), copy.deepcopy(BASES["gpt2"]))]
    for model in models:
        biases = [p for name, p in model.named_parameters() if name.endswith("c_attn.base.bias")]
        biases += [p for name, p in model.named_parameters() if name.endswith("c_fc.bias")]
        for i, bias in enumerate(biases):
            bias.data = bias.data + 0.1 * i
    adapter = bank.adapter_of(models[0], "test")
    ids = sentence(0, 9)
    np.testing.assert_allclose(bank.logits([(adapter, ids)])[0], alone(models[1], ids), atol=1e-5)


def test_a_matrix_trained_in_full_is_refused_by_name() -> None:
    bank = AdapterBank(copy.deepcopy(BASES["gpt2"]), FP32)
    model = adapt(bank.base(), Task(targets="c_attn"))
    weight = model.body.h[1].mlp.c_fc.weight
    weight.data = weight.data + 0.1
    with pytest.raises(ColakitError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight in full"):
        bank.adapter_of(model, "test")


def test_making_adapters_leaves_the_base_unchanged() -> None:
    bank = AdapterBank(copy.deepcopy(BASES["gpt2"]), FP32)
    before = {name: tensor.clone() for name, tensor in bank.base().state_dict().items() if not tensor.is_meta}
    adapter = bank.adapter_of(adapt(bank.base(), Task(variant="pissa")), "test")
    bank.logits([(adapter, sentence(0, 5))])
    for name, tensor in bank.base().state_dict().items():
        if not tensor.is_meta:
            assert torch.equal(tensor, before[name]), name


def test_an_adapter_takes_no_more_memory_than_its_tensors() -> None:
    bank = AdapterBank(copy.deepcopy(BASES["gpt2"]), FP32)
    model = adapt(bank.base(), Task())
    in_file = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert bank.adapter_of(model, "test").num_bytes == in_file
    assert sum(1 for _ in lora_layers(model))
