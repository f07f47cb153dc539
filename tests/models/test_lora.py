"""Tests of LoRA, its variants, and which parameters are trainable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.errors import ColakitError
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import (
    LoRAConfig,
    inject,
    lora_layers,
    merge,
    train_modules,
    unmerge,
)
from colakit.models.parameters import count_parameters
from colakit.training.optimizers import parameter_groups

SHAPE = GPTConfig(
    vocab_size=50,
    num_positions=16,
    width=16,
    num_layers=2,
    num_heads=2,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VARIANTS: dict[str, dict[str, Any]] = {
    "kaiming": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rslora with dora": {"rslora": True, "dora": True},
    "pissa": {"init": "pissa"},
    "rslora with pissa": {"rslora": True, "init": "pissa"},
    "patterns": {
        "rank_pattern": {"c_proj": 2, "h.0.attn.c_attn": 5},
        "alpha_pattern": {"c_proj": 3.0},
    },
}
STARTS_AT_ZERO = [name for name, settings in VARIANTS.items() if settings.get("init") != "pissa"]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def classifier() -> GPTClassifier:
    torch.manual_seed(0)
    model = GPT(SHAPE).classifier(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # GPT-2's own start is nearly linear
    return model.eval()


def adapted(variant: str, *, trained: bool = False) -> GPTClassifier:
    """Return a classifier with adapters: fresh, or with the values that training might have given them."""
    model = classifier()
    inject(model, LoRAConfig(**{"rank": 3, **VARIANTS[variant]}))
    if trained:
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_a.add_(0.3 * torch.randn_like(layer.lora_a))
                layer.lora_b.add_(0.3 * torch.randn_like(layer.lora_b))
                if layer.magnitude is not None:
                    layer.magnitude.mul_(0.5 + torch.rand_like(layer.magnitude))
    return model


@torch.no_grad()
def logits(model: GPTClassifier) -> Tensor:
    input_ids = torch.arange(24).view(3, 8)
    return model(input_ids, torch.ones_like(input_ids))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_names(*parts: str) -> set[str]:
    return {f"transformer.h.{i}.{linear}.{part}" for i in range(2) for linear in LINEARS for part in parts}


# -- inject, merge, unmerge


@pytest.mark.parametrize("variant", STARTS_AT_ZERO)
def test_injection_preserves_logits_bit_for_bit(variant: str) -> None:
    assert torch.equal(logits(adapted(variant)), logits(classifier()))


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - set(STARTS_AT_ZERO)))
def test_pissa_injection_preserves_logits(variant: str) -> None:
    # the weight is split in two and summed again in fp32
    torch.testing.assert_close(logits(adapted(variant)), logits(classifier()), atol=1e-5, rtol=0)


@every_variant
def test_merge_preserves_logits(variant: str) -> None:
    model = adapted(variant, trained=True)
    before = logits(model)
    assert (before - logits(classifier())).abs().max() > 0.1
    merge(model)
    # (W + BA)x and Wx + B(Ax) differ in the order of fp32 sums; logits here are of the order of 1
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@every_variant
def test_merging_twice_is_merging_once(variant: str) -> None:
    model = adapted(variant, trained=True)
    merge(model)
    once, once_logits = weights(model), logits(model)
    merge(model)
    assert identical(weights(model), once)
    assert torch.equal(logits(model), once_logits)


@every_variant
def test_unmerge_restores_weights_bit_for_bit(variant: str) -> None:
    model = adapted(variant, trained=True)
    before, before_logits = weights(model), logits(model)
    merge(model)
    assert not identical(weights(model), before)
    unmerge(model)
    unmerge(model)
    assert identical(weights(model), before)
    assert torch.equal(logits(model), before_logits)


@pytest.mark.parametrize("variant", STARTS_AT_ZERO)
def test_injection_leaves_the_base_untouched(variant: str) -> None:
    before = weights(classifier())
    after = {name.replace(".base.", "."): tensor for name, tensor in weights(adapted(variant)).items()}
    assert identical({name: after[name] for name in before}, before)


def test_adapter_dropout_is_off_in_eval_mode() -> None:
    model = classifier()
    inject(model, LoRAConfig(dropout=0.5, init="pissa"))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


# -- what is adapted, and how


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("c_proj", {f"transformer.h.{i}.{part}.c_proj" for i in range(2) for part in ("attn", "mlp")}),
        ("attn.c_proj", {"transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"}),
        ("h.1.mlp.c_proj", {"transformer.h.1.mlp.c_proj"}),
    ],
)
def test_a_target_is_a_dotted_suffix(target: str, expected: set[str]) -> None:
    model = classifier()
    assert set(inject(model, LoRAConfig(target_modules=(target,)))) == expected
    assert {name for name, _ in lora_layers(model)} == expected


@pytest.mark.parametrize(
    ("settings", "near"),
    [
        ({"target_modules": ("c_atn",)}, "c_attn"),
        ({"target_modules": ("c_attn", "mlp.c_porj")}, "mlp.c_proj"),
        ({"target_modules": ("proj",)}, "c_proj"),
        ({"target_modules": ("wte", "c_attn")}, "c_attn, c_fc"),
        ({"rank_pattern": {"c_fcc": 2}}, "c_fc"),
        ({"alpha_pattern": {"c_fcc": 2.0}}, "c_fc"),
        ({"target_modules": ("attn.c_proj",), "rank_pattern": {"mlp.c_proj": 2}}, "c_proj"),
    ],
)
def test_an_unmatched_name_is_refused_with_the_near_one(settings: dict[str, Any], near: str) -> None:
    model = classifier()
    before = trainable(model)
    key = "lora." + list(settings)[-1]
    with pytest.raises(ColakitError, match=rf"{key}: .* matches no linear layer.*{near}"):
        inject(model, LoRAConfig(**settings))
    assert trainable(model) == before, "a refusal leaves the model as it was"
    assert not list(lora_layers(model))


RANKS = {"c_proj": 2, "attn.c_proj": 3, "h.1.attn.c_proj": 5}
ALPHAS = {"c_proj": 4.0, "attn.c_proj": 9.0, "h.1.attn.c_proj": 1.0}


@pytest.mark.parametrize("order", [list(RANKS), list(reversed(RANKS))], ids=["rising", "falling"])
def test_the_longest_matching_suffix_of_a_pattern_decides(order: list[str]) -> None:
    model = classifier()
    ranks, alphas = {suffix: RANKS[suffix] for suffix in order}, {suffix: ALPHAS[suffix] for suffix in order}
    inject(model, LoRAConfig(rank=8, alpha=16.0, rank_pattern=ranks, alpha_pattern=alphas))
    actual = {
        name.removeprefix("transformer."): (layer.rank, layer.scaling) for name, layer in lora_layers(model)
    }
    assert actual == {
        **{f"h.{i}.{linear}": (8, 2.0) for i in range(2) for linear in ("attn.c_attn", "mlp.c_fc")},
        **{f"h.{i}.mlp.c_proj": (2, 2.0) for i in range(2)},
        "h.0.attn.c_proj": (3, 3.0),
        "h.1.attn.c_proj": (5, 0.2),
    }
    assert all(
        layer.lora_a.shape[0] == layer.lora_b.shape[1] == layer.rank for _, layer in lora_layers(model)
    )


def test_rank_and_alpha_patterns_are_independent() -> None:
    model = classifier()
    inject(model, LoRAConfig(rank=8, alpha=16.0, alpha_pattern={"c_fc": 4.0}, rank_pattern={"c_attn": 4}))
    layers = dict(lora_layers(model))
    assert layers["transformer.h.0.mlp.c_fc"].scaling == 4 / 8
    assert layers["transformer.h.0.attn.c_attn"].scaling == 16 / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank .=0."),
        ({"init": "olora"}, "init .='olora'."),
        ({"dora": True, "init": "pissa"}, "cannot be combined"),
    ],
)
def test_impossible_configs_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)


# -- what trains


NORMS = ("h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f")


@pytest.mark.parametrize(
    ("modules", "norms"),
    [
        (("score", "ln_1", "ln_2", "ln_f"), NORMS),
        (("ln_1", "ln_2", "ln_f"), NORMS),
        (("score",), ()),
        (("score", "h.1.ln_1", "transformer.ln_f"), ("h.1.ln_1", "ln_f")),
        ((), ()),
    ],
)
def test_only_adapters_and_named_modules_are_trainable(
    modules: tuple[str, ...], norms: tuple[str, ...]
) -> None:
    model = adapted("kaiming")
    train_modules(model, modules)
    expected = adapter_names("lora_a", "lora_b")
    expected |= {f"transformer.{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    expected |= {"score.weight"} if "score" in modules else set()
    assert trainable(model) == expected


def test_a_language_model_has_no_head_to_train() -> None:
    model = GPT(SHAPE).requires_grad_(False)
    train_modules(model, ("score", "ln_f"))
    assert trainable(model) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}


@pytest.mark.parametrize(("module", "layers"), [("ln_3", None), ("c_attn", None), ("h.0.ln_1", (1,))])
def test_an_unmatched_module_to_save_is_refused_with_the_allowed_names(
    module: str, layers: tuple[int, ...] | None
) -> None:
    model = adapted("kaiming")
    before = trainable(model)
    with pytest.raises(ColakitError, match=rf"modules_to_save: '{module}' matches no head") as refusal:
        train_modules(model, ("score", module), layers=layers)
    assert refusal.value.hint == "Name exact modules: ln_1, ln_2, ln_f, score"
    assert trainable(model) == before


def test_layers_to_transform_limits_adapters_and_block_norms() -> None:
    model = classifier()
    inject(model, LoRAConfig(rank=3, layers_to_transform=(1,)))
    train_modules(model, layers=(1,))
    norms = ["h.1.ln_1", "h.1.ln_2", "ln_f"]
    expected = {name for name in adapter_names("lora_a", "lora_b") if ".h.1." in name}
    expected |= {f"transformer.{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    assert trainable(model) == {*expected, "score.weight"}


def test_a_target_outside_layers_to_transform_is_refused() -> None:
    config = LoRAConfig(target_modules=("h.0.attn.c_attn",), layers_to_transform=(1,))
    with pytest.raises(ColakitError, match=r"'h\.0\.attn\.c_attn' matches no linear layer of its blocks 1"):
        inject(classifier(), config)


@pytest.mark.parametrize("layers", [(2,), (0, 7)])
def test_a_missing_block_is_refused(layers: tuple[int, ...]) -> None:
    model = classifier()
    before = trainable(model)
    with pytest.raises(ColakitError, match=rf"layers_to_transform: the model has no block {layers[-1]}"):
        inject(model, LoRAConfig(layers_to_transform=layers))
    assert trainable(model) == before
    assert not list(lora_layers(model))


@every_variant
def test_only_adapters_get_gradients(variant: str) -> None:
    model = adapted(variant, trained=True)
    input_ids = torch.arange(24).view(3, 8)
    F.cross_entropy(model(input_ids, torch.ones_like(input_ids)), torch.tensor([0, 1, 2])).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = ("lora_a", "lora_b", "magnitude") if "dora" in variant else ("lora_a", "lora_b")
    assert learning == trainable(model) == adapter_names(*parts)


def test_gpt2_small_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig()).classifier(2)
        inject(model, LoRAConfig(rank=4))
    train_modules(model)
    report = count_parameters(model)
    assert (report.trainable, report.total) == (629_760, 125_031_168)
    assert round(report.reduction, 2) == 99.50
    adapters = sum(row.total for row in report.rows if row.name.endswith("(adapter)"))
    assert adapters == sum(row.trainable for row in report.rows if row.name.endswith("(adapter)")) == 589_824


@pytest.mark.parametrize("loraplus_lr_ratio", [1.0, 16.0])
def test_parameter_groups_raise_the_rate_of_b_and_vectors_and_decay_matrices(
    loraplus_lr_ratio: float,
) -> None:
    model = adapted("dora")
    train_modules(model)
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1, loraplus_lr_ratio=loraplus_lr_ratio)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert settings.keys() == names.keys()
    assert sum(len(group["params"]) for group in groups) == len(names)
    vectors = ("magnitude", ".ln_1.weight", ".ln_2.weight", ".ln_f.weight", ".bias")
    for key, name in names.items():
        is_vector = name.endswith(vectors)
        fast = is_vector or name.endswith("lora_b")
        assert settings[key] == (1e-3 * loraplus_lr_ratio if fast else 1e-3, 0.0 if is_vector else 0.1), name
