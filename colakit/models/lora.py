"""Low-rank adapters on linear layers: LoRA, rsLoRA, DoRA, and PiSSA's initialisation.

Shapes: D_in and D_out of the adapted layer, R rank.

    h = W x + scaling · B A x,   A (R, D_in),  B (D_out, R)

LoRA (Hu et al. 2021, arXiv:2106.09685, §4.1) takes scaling = alpha/R; rsLoRA (Kalajdzievski 2023,
arXiv:2312.03732) alpha/√R. DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) rescales every output row to a
learnt magnitude. PiSSA (Meng et al. 2024, arXiv:2404.02948, §3) starts A and B at the principal part of W
and freezes the rest. All four follow PEFT in every number, which `tests/test_peft_parity.py` checks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.errors import ColakitError, did_you_mean
from colakit.kernels.fused import lora_linear


@dataclass(frozen=True)
class LoRAConfig:
    """How to adapt a model.

    Attributes:
        rank: R.
        alpha: numerator of the scaling.
        dropout: probability on the adapter's input, in training mode.
        target_modules: exact dotted tails of module names; `c_proj` is both projections of a block,
            `attn.c_proj` only the attention's, `h.0.attn.c_proj` only the first block's.
        rslora: scale by alpha/√R instead of alpha/R.
        dora: learn the rows' magnitudes apart from their directions.
        init: `kaiming` (A Kaiming-uniform, B zero) or `pissa`.
        overrides: `rank` and `alpha` of single modules, by dotted tail; the longest matching tail decides.
        layers_to_transform: numbers of the blocks to adapt, from 0; None adapts all.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    rslora: bool = False
    dora: bool = False
    init: str = "kaiming"
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
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
    """A frozen linear layer with a trainable low-rank update.

    Args:
        base: the layer to wrap; it is frozen, and kept as it is.
        config: rank, alpha, dropout and variant.
    """

    merged_from: Tensor | None  # the weight as it was before `merge`

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
        self.magnitude = nn.Parameter(self._row_norms()) if config.dora else None  # (D_out,)
        self.merged_from = None
        if config.init == "pissa":
            self._start_at_principal_part()

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, D_out) for (…, D_in)."""
        if self.merged_from is not None:
            return self.base(x)
        if self.magnitude is not None:
            return self._dora_forward(x)
        dropped = self.dropout(x)
        if dropped is not x:
            return self.base(x) + F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scaling
        return lora_linear(x, self.base.weight, self.base.bias, self.lora_a, self.lora_b, self.scaling)

    def _dora_forward(self, x: Tensor) -> Tensor:
        assert self.magnitude is not None
        # ‖W + ΔW‖ is a constant to the gradient (DoRA §4.3)
        rescale = self.magnitude / self._row_norms().detach()
        plain = self.base(x)
        dropped = self.dropout(x)
        turned = plain if dropped is x else F.linear(dropped, self.base.weight)
        if turned is plain and self.base.bias is not None:
            turned = plain - self.base.bias
        update = F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scaling
        return plain + (rescale - 1) * turned + rescale * update

    def _row_norms(self) -> Tensor:  # (D_out,)
        return torch.linalg.norm(self.base.weight.float() + self.scaling * self.lora_b @ self.lora_a, dim=1)

    def _start_at_principal_part(self) -> None:
        """Move the R leading singular directions of W into the adapter; the base keeps the residual."""
        weight = self.base.weight.data
        u, s, vt = torch.linalg.svd(weight.float(), full_matrices=False)
        root = torch.sqrt(s[: self.rank] / self.scaling)
        self.lora_a.data = root[:, None] * vt[: self.rank]
        self.lora_b.data = u[:, : self.rank] * root
        self.base.weight.data = (weight.float() - self.scaling * self.lora_b @ self.lora_a).to(weight.dtype)
        self.keep_start(self.lora_a.data, self.lora_b.data)

    def keep_start(self, start_a: Tensor, start_b: Tensor) -> None:
        """Remember where PiSSA started, for an update relative to the untouched W: W' = W + s(BA - B₀A₀)."""
        self.register_buffer("start_a", start_a.detach().clone())
        self.register_buffer("start_b", start_b.detach().clone())

    def merged_weight(self) -> Tensor:
        """Return the weight (D_out, D_in), in the base's dtype, that gives the adapted layer's outputs."""
        weight = self.base.weight.float() + self.scaling * self.lora_b @ self.lora_a
        if self.magnitude is not None:
            weight = weight * (self.magnitude / self._row_norms())[:, None]
        return weight.detach().to(self.base.weight.dtype)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield (dotted name, layer) of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def inject(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Freeze `model`, wrap its targeted linear layers in `LoRALinear`, and return their names.

    Raises:
        ColakitError: if a target or an override matches no linear layer, or a block is not there.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "score"  # the head trains whole or not at all
    }
    if config.layers_to_transform is not None:
        _require_blocks(config.layers_to_transform, linears)
        linears = {n: module for n, module in linears.items() if block_of(n) in config.layers_to_transform}
    chosen = [
        name for name in linears if any(matches_suffix(target, name) for target in config.target_modules)
    ]
    _require_matches(config.target_modules, linears, "lora.target_modules", config.layers_to_transform)
    _require_matches(config.overrides, chosen, "lora.overrides", config.layers_to_transform)
    model.requires_grad_(False)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        layer = LoRALinear(linears[name], module_config(config, name))
        setattr(model.get_submodule(parent), leaf, layer.train(model.training))
    return chosen


def block_of(name: str) -> int | None:
    """Return the number of the block that dotted `name` lies in, None outside of blocks."""
    found = re.search(r"(?:^|\.)h\.(\d+)\.", name)
    return int(found[1]) if found else None


def matches_suffix(tail: str, name: str) -> bool:
    """Tell whether dotted `name` ends in the whole components of `tail`."""
    return name == tail or name.endswith("." + tail)


def module_config(config: LoRAConfig, name: str) -> LoRAConfig:
    """Return `config` with the overrides for module `name` applied."""
    tails = sorted((tail for tail in config.overrides if matches_suffix(tail, name)), key=len)
    changes: dict[str, Any] = {}
    for tail in tails:
        changes.update(config.overrides[tail])
    return replace(config, **changes, overrides={})


def _require_blocks(numbers: Iterable[int], names: Iterable[str]) -> None:
    there = {block for block in map(block_of, names) if block is not None}
    if missing := sorted(set(numbers) - there):
        raise ColakitError(
            f"lora.layers_to_transform: the model has no block {missing[0]}",
            hint=f"Its blocks are 0 to {max(there, default=0)}.",
        )


def _require_matches(
    tails: Iterable[str], names: Iterable[str], setting: str, blocks: Sequence[int] | None
) -> None:
    names = list(names)
    where = "the model" if blocks is None else f"its blocks {', '.join(map(str, blocks))}"
    leaves = sorted(
        {name.rpartition(".")[2] for name in names} | {".".join(n.split(".")[-2:]) for n in names}
    )
    for tail in tails:
        if not any(matches_suffix(tail, name) for name in names):
            raise ColakitError(
                f"{setting}: {tail!r} matches no linear layer of {where}.{did_you_mean(tail, leaves)}",
                hint="Name exact modules, for example --target-modules c_attn,mlp.c_proj",
            )


def train_also(
    model: nn.Module, *, layernorm: bool, head: bool, layers: Collection[int] | None = None
) -> None:
    """Unfreeze the LayerNorms and the head `score`, as asked; trainable tensors become fp32.

    Args:
        layers: blocks whose LayerNorms are meant, as in `LoRAConfig.layers_to_transform`, besides the final
            one.
    """
    for name, module in model.named_modules():
        block = block_of(name)
        meant = layernorm and (layers is None or block is None or block in layers)
        if (meant and isinstance(module, nn.LayerNorm)) or (head and name == "score"):
            module.float().requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Fold every adapter into its base weight; a second call changes nothing."""
    for _, layer in lora_layers(model):
        if layer.merged_from is None:
            merged = layer.merged_weight()
            layer.merged_from = layer.base.weight.data
            layer.base.weight.data = merged


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: the very weights from before are put back, bit for bit."""
    for _, layer in lora_layers(model):
        if layer.merged_from is not None:
            layer.base.weight.data = layer.merged_from
            layer.merged_from = None


def merge_and_unload(model: nn.Module) -> None:
    """Put a plain layer with the merged weight in the place of every adapted one."""
    for name, layer in list(lora_layers(model)):
        if layer.merged_from is None:
            layer.base.weight.data = layer.merged_weight()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.base)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, loraplus_lr_ratio: float
) -> list[dict[str, Any]]:
    """Return optimizer groups: matrices decay, vectors do not; `loraplus_lr_ratio` speeds up B and vectors.

    LoRA+ is Hayou et al. 2024 (arXiv:2402.12354); which tensors take the higher rate follows PEFT's
    `create_loraplus_optimizer`. With `loraplus_lr_ratio` 1 it is AdamW's usual split.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fast = name.endswith("lora_b") or parameter.ndim == 1
        key = (lr * loraplus_lr_ratio if fast else lr, weight_decay if parameter.ndim > 1 else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def trainable_names(model: nn.Module) -> Sequence[str]:
    """Return the names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
