"""Low-rank adapters on linear layers: LoRA, rsLoRA, DoRA, and PiSSA's initialisation.

Shapes: D_in and D_out of the adapted layer, R rank.

    h = W x + scaling · B A x,   A (R, D_in),  B (D_out, R)

LoRA (Hu et al. 2021, arXiv:2106.09685, §4.1) takes scaling = alpha/R; rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732) alpha/√R. DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) rescales every output row to a
learnt magnitude. PiSSA (Meng et al. 2024, arXiv:2404.02948, §3) initialises A and B with the principal part
of W and freezes the rest. `tests/storage/test_peft_parity.py` checks all four against PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.errors import ColakitError, did_you_mean
from colakit.kernels.fused import lora_linear
from colakit.kernels.int8 import Int8Linear

ALL_LINEAR = "all-linear"  # of `target_modules`: every linear layer of the blocks, as in PEFT
ALL_NORMS = "all-norms"  # of `modules_to_save`: every norm
NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class LoRAConfig:
    """The hyperparameters of the adapters of one model.

    A module is named by an exact dotted suffix: `c_proj` matches both projections of every block,
    `attn.c_proj` the attention's, `h.0.attn.c_proj` the first block's.

    Attributes:
        rank: R.
        alpha: numerator of the scaling.
        dropout: dropout probability on the adapter's input, in training mode.
        target_modules: suffixes of the linear layers to adapt, or `ALL_LINEAR`.
        rslora: scale by alpha/√R instead of alpha/R.
        dora: learn the magnitude of each output row separately.
        init: `kaiming` (A Kaiming-uniform, B zero) or `pissa`.
        rank_pattern: suffix -> rank of the modules it matches; the longest matching suffix decides.
        alpha_pattern: suffix -> alpha, likewise.
        layers_to_transform: indices of the blocks to adapt, from 0; None adapts all.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False
    init: str = "kaiming"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank (={self.rank}) must be at least 1")
        if not (math.isfinite(self.alpha) and 0 <= self.dropout <= 1):
            raise ValueError(
                f"alpha (={self.alpha}) must be finite, and dropout (={self.dropout}) a probability"
            )
        if self.init not in ("kaiming", "pissa"):
            raise ValueError(f"init (={self.init!r}) must be kaiming or pissa")
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa cannot be combined; choose one")


class LoRALinear(nn.Module):
    """A frozen linear layer `base` with a trainable low-rank update."""

    base: nn.Linear | Int8Linear
    merged_from: Tensor | None  # the base weight before `merge`

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": base.weight.device, "dtype": torch.float32}
        self.base = base.requires_grad_(False)
        self.rank = config.rank
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.dropout = nn.Dropout(config.dropout)
        self.lora_a = nn.Parameter(torch.empty(config.rank, base.in_features, **factory))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, **factory))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self.row_norms()) if config.dora else None  # (D_out,)
        self.merged_from = None
        if config.init == "pissa":
            self._init_pissa()

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D_out) for (…, D_in)."""
        if self.merged_from is not None:
            return self.base(x)
        dropped = self.dropout(x)
        if dropped is x and self.magnitude is None:
            if isinstance(self.base, Int8Linear):
                return self.base.adapted(x, self.lora_a, self.lora_b, self.scaling)
            return lora_linear(x, self.base.weight, self.base.bias, self.lora_a, self.lora_b, self.scaling)
        weight, bias = self.base.weight, self.base.bias
        plain = self.base(x)
        update = F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scaling
        if self.magnitude is None:
            return plain + update
        # ‖W + ΔW‖ is treated as a constant in the backward pass (DoRA §4.3)
        rescale = self.magnitude / self.row_norms().detach()
        without_bias = (
            F.linear(dropped, weight) if dropped is not x else plain if bias is None else plain - bias
        )
        # summed in fp32; with B = 0 `rescale` is 1, and the result is `plain` in every dtype
        return (plain + (rescale - 1) * without_bias + rescale * update).to(plain.dtype)

    def row_norms(self) -> Tensor:
        """Return the norms ‖W + ΔW‖ of the output rows, (D_out,)."""
        weight = self.base.weight.float() + self.scaling * self.lora_b @ self.lora_a
        return torch.linalg.norm(weight.contiguous(), dim=1)  # rounding depends on the memory layout

    def reset_magnitude(self) -> None:
        """Set a fresh DoRA's magnitude to the row norms of W again, after W was moved or cast."""
        if self.magnitude is not None and not self.lora_b.any():
            self.magnitude.data = self.row_norms().detach()

    def make_dense(self) -> None:
        """Convert an int8 base layer to one with the same weights in fp32, so that they can change."""
        if isinstance(self.base, Int8Linear):
            self.base = self.base.dense()

    def _init_pissa(self) -> None:
        """Move the R leading singular directions of W into the adapter; the base keeps the residual."""
        weight = self.base.weight.data
        if self.rank > min(weight.shape):
            raise ColakitError(
                f"lora.init=pissa with lora.rank={self.rank}: a layer of shape {tuple(weight.shape)} has "
                f"{min(weight.shape)} singular directions",
                hint="Lower the rank, or use lora.init=kaiming.",
            )
        u, s, vt = torch.linalg.svd(weight.float(), full_matrices=False)
        root = torch.sqrt(s[: self.rank] / self.scaling)
        self.lora_a.data = root[:, None] * vt[: self.rank]
        self.lora_b.data = u[:, : self.rank] * root
        self.base.weight.data = (weight.float() - self.scaling * self.lora_b @ self.lora_a).to(weight.dtype)
        self.keep_start(self.lora_a.data, self.lora_b.data)

    def keep_start(self, start_a: Tensor, start_b: Tensor) -> None:
        """Store PiSSA's initial factors, so that the update can be written for W: W' = W + s(BA - B₀A₀)."""
        self.register_buffer("start_a", start_a.detach().clone())
        self.register_buffer("start_b", start_b.detach().clone())

    def merged_weight(self) -> Tensor:
        """Return the merged weight (D_out, D_in) in the base's dtype."""
        weight = self.base.weight.float() + self.scaling * self.lora_b @ self.lora_a
        if self.magnitude is not None:
            weight = weight * (self.magnitude / self.row_norms())[:, None]
        return weight.detach().to(self.base.weight.dtype)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield (dotted name, layer) of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def inject(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Freeze `model`, wrap its targeted linear layers in `LoRALinear`, and return their names.

    Raises:
        ColakitError: if a name matches no linear layer, or the model lacks a block of `layers_to_transform`.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and block_of(name) is not None  # heads train in full or not at all
    }
    layers = config.layers_to_transform
    if layers is not None:
        blocks = {block for block in map(block_of, linears) if block is not None}
        if missing := sorted(set(layers) - blocks):
            raise ColakitError(
                f"lora.layers_to_transform: the model has no block {missing[0]}",
                hint=f"Its blocks are 0 to {max(blocks, default=0)}.",
            )
        linears = {name: module for name, module in linears.items() if block_of(name) in layers}
    targets = [
        name
        for name in linears
        if any(target == ALL_LINEAR or matches_suffix(target, name) for target in config.target_modules)
    ]
    named = [target for target in config.target_modules if target != ALL_LINEAR]
    _require_matches("target_modules", named, linears, layers)
    _require_matches("rank_pattern", config.rank_pattern, targets, layers)
    _require_matches("alpha_pattern", config.alpha_pattern, targets, layers)
    model.requires_grad_(False)
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        layer = LoRALinear(linears[name], module_config(config, name))
        setattr(model.get_submodule(parent), leaf, layer.train(model.training))
    return targets


def block_of(name: str) -> int | None:
    """Return the index of the block that contains module `name`, None outside of the blocks."""
    match = re.search(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)
    return int(match[1]) if match else None


def matches_suffix(suffix: str, name: str) -> bool:
    """Return whether the last components of dotted `name` are those of `suffix`."""
    return name == suffix or name.endswith("." + suffix)


def module_config(config: LoRAConfig, name: str) -> LoRAConfig:
    """Return the config of module `name`: `config` with its patterns applied."""

    def longest(pattern: Mapping[str, Any], default: Any) -> Any:
        suffixes = [suffix for suffix in pattern if matches_suffix(suffix, name)]
        return pattern[max(suffixes, key=len)] if suffixes else default

    rank = longest(config.rank_pattern, config.rank)
    alpha = longest(config.alpha_pattern, config.alpha)
    return replace(config, rank=rank, alpha=alpha, rank_pattern={}, alpha_pattern={})


def _require_matches(
    setting: str,
    suffixes: Iterable[str],
    names: Iterable[str],
    layers: Sequence[int] | None,
    kind: str = "linear layer",
) -> None:
    """Raise `ColakitError` if one of `suffixes` matches no module of `names`."""
    names = list(names)
    scope = "the model" if layers is None else f"its blocks {', '.join(map(str, layers))}"
    leaves = sorted({name.rpartition(".")[2] for name in names})
    allowed = sorted({*leaves, *(".".join(name.split(".")[-2:]) for name in names)})
    for suffix in suffixes:
        if not any(matches_suffix(suffix, name) for name in names):
            raise ColakitError(
                f"lora.{setting}: {suffix!r} matches no {kind} of {scope}.{did_you_mean(suffix, allowed)}",
                hint=f"Name exact modules: {', '.join(leaves)}",
            )


def train_modules(
    model: nn.Module,
    modules: Sequence[str] = ("score", ALL_NORMS),
    *,
    layers: Sequence[int] | None = None,
) -> None:
    """Unfreeze the head `score` and the norms that `modules` names, and make them fp32.

    Args:
        modules: exact dotted suffixes, as PEFT's `modules_to_save`, or `ALL_NORMS`. `score` is ignored where
            the model has no classification head.
        layers: `LoRAConfig.layers_to_transform`: norms of other blocks stay frozen.

    Raises:
        ColakitError: if a name matches neither the head nor a norm.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if name == "score"
        or (
            isinstance(module, NORMS)
            and (layers is None or block_of(name) is None or block_of(name) in layers)
        )
    }
    named = [suffix for suffix in modules if suffix != ALL_NORMS]
    _require_matches("modules_to_save", named, {"score", *candidates}, layers, "head or norm")
    for name, module in candidates.items():
        is_norm = name != "score" and ALL_NORMS in modules
        if is_norm or any(matches_suffix(suffix, name) for suffix in named):
            module.float().requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Merge every adapter into its base weight; a second call changes nothing."""
    for _, layer in lora_layers(model):
        if layer.merged_from is None:
            layer.make_dense()
            merged = layer.merged_weight()
            layer.merged_from = layer.base.weight.data
            layer.base.weight.data = merged


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, restoring the base weights bit for bit."""
    for _, layer in lora_layers(model):
        if layer.merged_from is not None:
            layer.base.weight.data = layer.merged_from
            layer.merged_from = None


def merge_and_unload(model: nn.Module) -> None:
    """Replace every adapted layer by its base layer with the merged weight."""
    for name, layer in list(lora_layers(model)):
        if layer.merged_from is None:
            layer.make_dense()
            layer.base.weight.data = layer.merged_weight()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)
