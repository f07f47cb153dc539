"""LoRA adapters in PEFT's folder format, read and written without PEFT.

A folder holds `adapter_config.json` and `adapter_model.safetensors`; keys look like
`base_model.model.transformer.h.0.attn.c_attn.lora_A.weight`. A and B stand there as here, (R, D_in) and
(D_out, R), whatever the orientation of the layer they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from colakit.errors import ColakitError, first_line
from colakit.models.lora import LoRAConfig, block_of, inject, lora_layers, matches_suffix
from colakit.storage.tensors import read_weights_file
from colakit.utils.files import read_json, replacing, write_json

PREFIX = "base_model.model."
FACTORS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "magnitude"}
NAMING = ("target_modules", "exclude_modules", "modules_to_save")
MAX_PATTERN = 4000  # characters
PATTERN_SECONDS = 1.0  # for one name; a pattern may be made to take for ever
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "layer_replication",
    "megatron_config",
    "loftq_config",
    "corda_config",
    "eva_config",
)


@dataclass(frozen=True)
class PeftAdapter:
    """The contents of an adapter folder.

    Attributes:
        config: what to inject; `target_modules` are whole module names.
        factors: tensors of the adapted layers, by colakit's parameter name.
        saved_modules: tensors that replace the base's own (`score.weight`, LayerNorms), by parameter name.
        base: the base's path or hub name, as PEFT recorded it.
        raw: adapter_config.json as it stands.
    """

    config: LoRAConfig
    factors: Mapping[str, Tensor]
    saved_modules: Mapping[str, Tensor]
    base: str
    raw: Mapping[str, Any]


def read_adapter(folder: Path) -> PeftAdapter:
    """Read an adapter folder that PEFT or colakit wrote.

    Raises:
        ColakitError: if a file is missing or broken, or the adapter is of a kind not computed here.
    """
    config_path = folder / "adapter_config.json"
    raw = _read_config(config_path)
    path = folder / "adapter_model.safetensors"
    tensors = read_weights_file(path, hint="Save the adapter again.")
    factors: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        tail = next((tail for tail in FACTORS if name.endswith("." + tail)), None)
        if tail is None:
            saved[name] = tensor
            continue
        module = name.removesuffix("." + tail)
        factors[f"{module}.{FACTORS[tail]}"] = tensor
        if tail == "lora_A.weight" and tensor.ndim == 2:  # any other is refused by its shape
            ranks[module] = tensor.shape[0]
    if not ranks:
        raise ColakitError(f"{path}: holds no LoRA factors", hint="Is this the adapter's folder?")
    try:
        config = _lora_config(raw, ranks)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ColakitError(f"{config_path}: {error}", hint="Save the adapter again.") from error
    return PeftAdapter(
        config=config,
        factors=factors,
        saved_modules=saved,
        base=str(raw.get("base_model_name_or_path") or ""),
        raw=raw,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        raw = read_json(path)
    except (OSError, ValueError) as error:
        raise ColakitError(f"{path}: cannot be read ({error})", hint="Is this an adapter folder?") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        raise ColakitError(f"{path}: peft_type is {kind!r}; colakit reads LORA")
    for key in UNSUPPORTED:
        if raw.get(key):
            raise ColakitError(f"{path}: {key} is set, which colakit does not compute")
    if raw.get("bias", "none") != "none" or raw.get("lora_bias"):
        raise ColakitError(f"{path}: trained biases are not supported; bias must be 'none'")
    for key in NAMING:
        names = raw.get(key) or ()
        if not isinstance(names, (str, list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ColakitError(f"{path}: {key} must be names, or a pattern")
    return raw


def _lora_config(raw: dict[str, Any], ranks: Mapping[str, int]) -> LoRAConfig:
    default_alpha = float(raw.get("lora_alpha") or 8)
    patterns = raw.get("alpha_pattern") or {}
    alphas: dict[str, float] = {}
    for module in ranks:
        matching = [value for key, value in patterns.items() if _fits(rf"(.*\.)?({key})", module)]
        alphas[module] = float(matching[0]) if matching else default_alpha
    init = str(raw.get("init_lora_weights", True)).lower()
    if init.startswith(("olora", "corda", "eva", "loftq", "lora_ga", "pissa_niter")):  # the last is random
        raise ColakitError(
            f"adapter_config.json: init_lora_weights is {init!r}, which altered the base when training began",
            hint="Convert it in PEFT first: save_pretrained(path_initial_model_for_weight_conversion=…)",
        )
    return LoRAConfig(
        rank=int(raw.get("r") or 8),
        alpha=default_alpha,
        dropout=float(raw.get("lora_dropout") or 0.0),
        target_modules=tuple(ranks),
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        init="pissa" if init == "pissa" else "kaiming",  # PEFT, too, repeats the decomposition here
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def apply_adapter(model: nn.Module, adapter: PeftAdapter, *, where: str) -> None:
    """Inject `adapter` into `model` and load its tensors.

    Args:
        model: a GPT or GPTClassifier; a language model leaves the adapter's classification head aside.
        where: what error messages call the adapter.

    Raises:
        ColakitError: if a tensor has no place in the model, or another shape, or is missing.
    """
    _check_coverage(model, adapter, where)
    try:
        inject(model, adapter.config)
    except (ValueError, RuntimeError) as error:  # PiSSA decomposes weights, which may not be numbers
        raise ColakitError(f"{where}: {first_line(error)}", hint="Save the adapter again.") from error
    places = dict(model.named_parameters())
    tensors = {**adapter.factors, **adapter.saved_modules}
    if "score.weight" not in places:
        tensors.pop("score.weight", None)
    for name, tensor in tensors.items():
        if name not in places:
            raise ColakitError(
                f"{where}: {name} has no place in this base", hint="Name the adapter's own base."
            )
        if places[name].shape != tensor.shape:
            raise ColakitError(
                f"{where}: {name} is {tuple(tensor.shape)}, this base wants {tuple(places[name].shape)}",
                hint="The adapter was made for another base; name that one with --base.",
            )
        places[name].data = tensor.clone()
    expected = {
        f"{name}.{part}"
        for name, layer in lora_layers(model)
        for part, _ in layer.named_parameters(recurse=False)
    }
    if missing := sorted(expected - set(tensors)):
        raise ColakitError(f"{where}: {missing[0]} is missing; the adapter is not complete")


def _check_coverage(model: nn.Module, adapter: PeftAdapter, where: str) -> None:
    """Refuse an adapter that is torn, or made for a base with fewer or more layers."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = set(adapter.config.target_modules)
    if foreign := sorted(adapted - linears.keys()):
        raise ColakitError(
            f"{where}: {foreign[0]} has no place in this base", hint="Name the adapter's own base."
        )
    for name in sorted(adapted):  # before B is made, which is as long as the rank
        rank, width = adapter.factors[f"{name}.lora_a"].shape
        wanted = linears[name].in_features
        if width != wanted:
            raise ColakitError(
                f"{where}: {name}.lora_a is {(rank, width)}, this base wants {(rank, wanted)}",
                hint="The adapter was made for another base; name that one with --base.",
            )
    saved = tuple(adapter.raw.get("modules_to_save") or ())
    expected = {name for name in linears if _is_targeted(adapter.raw, name)} - adapted
    expected |= {
        name
        for name, _ in model.named_parameters()
        if any(matches_suffix(module, name.rpartition(".")[0]) for module in saved)
        and name not in adapter.saved_modules
    }
    if expected:
        raise ColakitError(
            f"{where}: {min(expected)} is missing, which its adapter_config.json promises for this base",
            hint="The adapter is torn, or was made for another base; name that one with --base.",
        )


def _is_targeted(raw: Mapping[str, Any], name: str) -> bool:
    """Tell whether PEFT would adapt module `name`."""
    targets, excluded = raw.get("target_modules") or (), raw.get("exclude_modules") or ()
    saved = raw.get("modules_to_save") or ()
    if any(matches_suffix(module, name) for module in saved) or not _in_layers(raw, name):
        return False
    return _names(targets, name) and not _names(excluded, name)


def _in_layers(raw: Mapping[str, Any], name: str) -> bool:
    """Tell whether module `name` is in one of the blocks that the config names, where it names any."""
    layers = raw.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    return block_of(name) in (layers if isinstance(layers, list) else [layers])


def _names(modules: str | Iterable[str], name: str) -> bool:
    if isinstance(modules, str):
        return _fits(modules, name)
    return any(matches_suffix(module, name) for module in modules)


def _fits(pattern: str, name: str) -> bool:
    """Tell whether a regular expression of the adapter's config matches a whole name.

    Raises:
        ColakitError: if it is none, or takes longer than an honest one would.
    """
    if len(pattern) > MAX_PATTERN or pattern.count("{") > 2 or regex.search(r"\{[^}]*\d{3}", pattern):
        raise ColakitError(  # counted repetitions are written out before they are matched
            f"adapter_config.json: the pattern {pattern[:60]!r} is larger than a name of modules needs"
        )
    try:
        return regex.fullmatch(pattern, name, timeout=PATTERN_SECONDS) is not None
    except (regex.error, TimeoutError, RecursionError) as error:
        raise ColakitError(
            f"adapter_config.json: the pattern {pattern[:60]!r} cannot be matched ({first_line(error)})"
        ) from None


def write_adapter(model: nn.Module, folder: Path, config: LoRAConfig, *, base: str) -> None:
    """Write the trained part of a GPTClassifier so that PEFT opens it on the untouched base.

    A PiSSA adapter is written as the plain LoRA of rank 2R that equals it (PiSSA appendix C): the base on the
    reader's side has not been decomposed.
    """
    layers = dict(lora_layers(model))
    converted = config.init == "pissa"
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = layer.lora_a.detach(), layer.lora_b.detach()
        if converted:
            a = torch.cat([a, layer.get_buffer("start_a")])
            b = torch.cat([b, -layer.get_buffer("start_b")], dim=1)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
        if layer.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude.detach()
    inside = tuple(f"{name}." for name in layers)
    saved = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or name == "score.weight") and not name.startswith(inside)
    }
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in saved.items()}
    ranks = {name: tensors[f"{PREFIX}{name}.lora_A.weight"].shape[0] for name in layers}
    raw = {**_peft_config(config, layers, ranks, base), "modules_to_save": _modules_to_save(model, saved)}
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.float().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file(contiguous, temporary, {"format": "pt"})
    write_json(folder / "adapter_config.json", raw)


def _peft_config(
    config: LoRAConfig, layers: Mapping[str, Any], ranks: Mapping[str, int], base: str
) -> dict[str, Any]:
    def alpha(name: str) -> float:  # the numerator that gives PEFT our scaling at the written rank
        value = layers[name].scaling * (math.sqrt(ranks[name]) if config.rslora else ranks[name])
        return int(value) if float(value).is_integer() else value

    usual_rank = config.rank * (2 if config.init == "pissa" else 1)
    usual_alpha = config.alpha * (
        usual_rank / config.rank if not config.rslora else math.sqrt(usual_rank / config.rank)
    )
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.target_modules),
        "layers_to_transform": config.layers_to_transform,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != usual_rank},
        "alpha_pattern": {name: alpha(name) for name in layers if not math.isclose(alpha(name), usual_alpha)},
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
    }


def _modules_to_save(model: nn.Module, saved: Iterable[str]) -> list[str]:
    """Return PEFT's names of the modules that parameters `saved` belong to: tails that name no others."""
    modules = {name.rpartition(".")[0] for name in saved}
    others = {name for name, _ in model.named_modules()} - modules
    leaves = {name.rpartition(".")[2] for name in others}
    return sorted({leaf if (leaf := name.rpartition(".")[2]) not in leaves else name for name in modules})
