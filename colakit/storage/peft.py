"""Read and write LoRA adapters in PEFT's format, without PEFT.

A folder contains `adapter_config.json` and `adapter_model.safetensors`, with keys such as
`base_model.model.transformer.h.0.attn.c_attn.lora_A.weight`. A is (R, D_in) and B (D_out, R), also for
layers that store their weight transposed (GPT-2's Conv1D).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
import torch
from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from colakit.errors import ColakitError, first_line
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.lora import ALL_LINEAR, LoRAConfig, block_of, inject, lora_layers, module_config
from colakit.storage.run_schemas import Fraction
from colakit.storage.tensors import read_weights_file
from colakit.utils.documents import Document, library_errors, read_document
from colakit.utils.files import replacing, write_json

PREFIX = "base_model.model."
BASE_FOLDER = "base"  # in an exported adapter folder: its base, with a head of zeros
HEAD = "score"
FACTORS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "magnitude"}
OTHER_BASE = "The adapter was trained on another base; name that base with --base."
MAX_MODULES = 2**12
MAX_PATTERNS = 2**10
MAX_PATTERN = 4000  # characters
PATTERN_SECONDS = 1.0  # for all, because a hostile pattern can backtrack for ever
MERGE_FIRST = (
    "Merge it in PEFT (merge_and_unload, save_pretrained), and give colakit the folder of the whole model."
)
INERT = (  # keys of adapter_config.json that change no number; other unknown keys must be unset
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "fan_in_fan_out"),
    *("layers_pattern", "rank_pattern", "megatron_core", "qalora_group_size", "runtime_config"),
)
Names = Annotated[list[str], Field(max_length=MAX_MODULES, fail_fast=True)]
Layer = Annotated[int, Field(ge=0, lt=2**16)]


def _or_default(value: Any, info: ValidationInfo) -> Any:
    """PEFT writes null for what is not set."""
    assert info.field_name is not None
    return AdapterConfig.model_fields[info.field_name].default if value is None else value


class AdapterConfig(Document, extra="allow"):
    """The fields of adapter_config.json that colakit reads."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    r: Annotated[int, Field(ge=1, le=2**16)] = 8
    lora_alpha: Annotated[float, Field(ge=-1e6, le=1e6)] = 8.0
    lora_dropout: Fraction = 0.0
    target_modules: Annotated[str, Field(max_length=MAX_PATTERN)] | Names | None = None
    exclude_modules: Annotated[str, Field(max_length=MAX_PATTERN)] | Names | None = None
    modules_to_save: Names | None = None
    layers_to_transform: Layer | Annotated[list[Layer], Field(max_length=MAX_MODULES)] | None = None
    alpha_pattern: Annotated[dict[str, FiniteFloat], Field(max_length=MAX_PATTERNS)] = Field({})
    init_lora_weights: bool | str = True
    use_rslora: bool = False
    use_dora: bool = False

    _default = field_validator(
        *("r", "lora_alpha", "lora_dropout", "bias", "alpha_pattern", "use_rslora", "use_dora"),
        mode="before",
    )(_or_default)

    @model_validator(mode="after")
    def _is_supported(self) -> AdapterConfig:
        if used := sorted(
            key for key, value in (self.model_extra or {}).items() if value and key not in INERT
        ):
            raise ValueError(f"{used[0]} is not supported")
        return self


@dataclass(frozen=True)
class PeftAdapter:
    """The contents of an adapter folder.

    Attributes:
        config: of the adapters; `target_modules` are full module names.
        factors: parameter name -> tensor of an adapted layer.
        saved_modules: parameter name -> tensor of a module trained in full (`score.weight`, LayerNorms).
        base: path or hub name of the base.
        raw: the content of adapter_config.json.
    """

    config: LoRAConfig
    factors: Mapping[str, Tensor]
    saved_modules: Mapping[str, Tensor]
    base: str
    raw: AdapterConfig


def read_adapter(folder: Path) -> PeftAdapter:
    """Read an adapter folder written by PEFT or colakit.

    Raises:
        ColakitError: if a file is missing or corrupt, or the adapter's type is not supported.
    """
    config_path = folder / "adapter_config.json"
    raw = read_document(config_path, AdapterConfig, hint=f"Name the folder of a LoRA adapter. {MERGE_FIRST}")
    files = [folder / f"adapter_model.{kind}" for kind in ("safetensors", "bin")]  # older PEFT wrote .bin
    path = next((path for path in files if path.is_file()), files[0])
    tensors = read_weights_file(path, hint="Save the adapter again.")
    factors: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".base.")
        if ".lora_embedding_" in f".{name}":
            raise ColakitError(f"{path}: LoRA on embeddings ({key}) is not supported", hint=MERGE_FIRST)
        suffix = next((suffix for suffix in FACTORS if name.endswith("." + suffix)), None)
        if suffix is None:
            saved[name] = tensor
            continue
        module = name.removesuffix("." + suffix)
        factors[f"{module}.{FACTORS[suffix]}"] = tensor
        if suffix == "lora_A.weight" and tensor.ndim == 2:  # `apply_adapter` refuses other shapes
            ranks[module] = tensor.shape[0]
    if not ranks:
        raise ColakitError(f"{path}: contains no LoRA tensors", hint="Check that it is a LoRA adapter.")
    if len(ranks) > MAX_MODULES:
        raise ColakitError(f"{path}: adapts {len(ranks):,} layers; {MAX_MODULES:,} are allowed")
    with library_errors(config_path, hint="Save the adapter again."):
        config = _lora_config(raw, ranks)
    if HEAD in ranks and (folder / BASE_FOLDER).is_dir():
        scaling = module_config(config, HEAD).alpha / ranks.pop(HEAD)
        a, b = (factors.pop(f"{HEAD}.{factor}") for factor in ("lora_a", "lora_b"))
        saved[f"{HEAD}.weight"] = scaling * b @ a
        alphas = {name: alpha for name, alpha in config.alpha_pattern.items() if name != HEAD}
        config = replace(config, target_modules=tuple(ranks), rank_pattern=ranks, alpha_pattern=alphas)
    return PeftAdapter(config, factors, saved, raw.base_model_name_or_path or "", raw)


def _lora_config(raw: AdapterConfig, ranks: Mapping[str, int]) -> LoRAConfig:
    default_alpha = raw.lora_alpha or 8.0
    fits = PatternMatcher()
    alphas: dict[str, float] = {}
    for module in ranks:
        matching = (value for key, value in raw.alpha_pattern.items() if fits(rf"(.*\.)?({key})", module))
        alphas[module] = next(matching, default_alpha)
    init = str(raw.init_lora_weights).lower()
    if init.startswith(
        ("olora", "corda", "eva", "loftq", "lora_ga", "pissa_niter")
    ):  # pissa_niter is randomised
        raise ColakitError(
            f"adapter_config.json: init_lora_weights is {init[:40]!r}, which changes the base's weights",
            hint=MERGE_FIRST,
        )
    return LoRAConfig(
        rank=raw.r,
        alpha=default_alpha,
        dropout=raw.lora_dropout,
        target_modules=tuple(ranks),
        rslora=raw.use_rslora,
        dora=raw.use_dora,
        init="pissa" if init == "pissa" else "kaiming",  # PEFT also repeats the decomposition on loading
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def apply_adapter(model: nn.Module, adapter: PeftAdapter, *, where: str) -> None:
    """Inject `adapter` into `model` and load its tensors.

    Args:
        model: a GPT or GPTClassifier; a GPT ignores the adapter's classification head.
        where: name of the adapter in error messages.

    Raises:
        ColakitError: if a tensor is missing, has another shape, or belongs to no parameter of the model.
    """
    _check_coverage(model, adapter, where)
    try:
        inject(model, adapter.config)
    except (ValueError, RuntimeError) as error:  # PiSSA's SVD fails on weights that are not finite
        raise ColakitError(f"{where}: {first_line(error)}", hint="Save the adapter again.") from error
    tensors = {**adapter.factors, **adapter.saved_modules}
    _resize_embedding(model, tensors)
    parameters = dict(model.named_parameters())
    if "score.weight" not in parameters:
        tensors.pop("score.weight", None)
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ColakitError(f"{where}: this base has no parameter {name}", hint=OTHER_BASE)
        if parameters[name].shape != tensor.shape:
            raise _wrong_shape(where, name, tensor.shape, parameters[name].shape)
        parameters[name].data = tensor.clone()
    expected = {
        f"{name}.{part}"
        for name, layer in lora_layers(model)
        for part, _ in layer.named_parameters(recurse=False)
    }
    if missing := sorted(expected - set(tensors)):
        raise ColakitError(f"{where}: {missing[0]} is missing", hint="Save the adapter again.")


def _resize_embedding(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the token embedding the rows of the adapter's, which PEFT saves if they were resized."""
    assert isinstance(model, GPT | GPTClassifier)
    embedding = model.body.embedding
    name = next(name for name, module in model.named_modules() if module is embedding)
    rows = tensors.get(f"{name}.weight")
    if rows is None or rows.ndim != 2 or rows.shape[1] != model.config.width:
        return
    embedding.num_embeddings = len(rows)
    embedding.weight.data = rows
    model.config = model.body.config = replace(model.config, vocab_size=len(rows))


def _check_coverage(model: nn.Module, adapter: PeftAdapter, where: str) -> None:
    """Refuse an adapter that lacks tensors, or was trained on a base with other layers."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = set(adapter.config.target_modules)
    if foreign := sorted(adapted - linears.keys()):
        raise ColakitError(f"{where}: this base has no linear layer {foreign[0]}", hint=OTHER_BASE)
    for name in sorted(adapted):  # before `inject` allocates both factors
        rank, layer = adapter.config.rank_pattern[name], linears[name]
        for part, shape in (("lora_a", (rank, layer.in_features)), ("lora_b", (layer.out_features, rank))):
            tensor = adapter.factors.get(f"{name}.{part}")
            if tensor is None:
                raise ColakitError(f"{where}: {name}.{part} is missing", hint="Save the adapter again.")
            if tuple(tensor.shape) != shape:
                raise _wrong_shape(where, f"{name}.{part}", tensor.shape, shape)
    saved, fits = adapter.raw.modules_to_save or (), PatternMatcher()
    expected = {name for name in linears if _is_targeted(adapter.raw, name, fits)} - adapted
    expected -= {name.removesuffix(".weight") for name in adapter.saved_modules}
    expected |= {
        name
        for name, _ in model.named_parameters()
        if _has_suffix(name.rpartition(".")[0], saved) and name not in adapter.saved_modules
    }
    if expected:
        raise ColakitError(
            f"{where}: {min(expected)} is missing, but adapter_config.json names it for this base",
            hint=f"Save the adapter again. {OTHER_BASE}",
        )


def _wrong_shape(where: str, name: str, got: Iterable[int], expected: Iterable[int]) -> ColakitError:
    return ColakitError(
        f"{where}: {name} has shape {tuple(got)}, but this base needs {tuple(expected)}", hint=OTHER_BASE
    )


def _is_targeted(raw: AdapterConfig, name: str, fits: PatternMatcher) -> bool:
    """Return whether PEFT would adapt module `name`."""
    layers = raw.layers_to_transform
    if layers not in (None, []) and block_of(name) not in (layers if isinstance(layers, list) else [layers]):
        return False
    if _has_suffix(name, raw.modules_to_save or ()):
        return False

    def matches(modules: str | list[str] | None) -> bool:
        return fits(modules, name) if isinstance(modules, str) else _has_suffix(name, modules or ())

    return matches(raw.target_modules) and not matches(raw.exclude_modules)


def _has_suffix(name: str, modules: Iterable[str]) -> bool:
    """Return whether one of `modules` is `name` or a dotted suffix of it."""
    parts = name.split(".")
    return not {".".join(parts[i:]) for i in range(len(parts))}.isdisjoint(modules)


class PatternMatcher:
    """Matches the regular expressions of one adapter, with one time limit for all."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + PATTERN_SECONDS

    def __call__(self, pattern: str, name: str) -> bool:
        """Return whether `pattern` matches the whole `name`.

        Raises:
            ColakitError: if the pattern is invalid or too long, or no time is left.
        """
        if len(pattern) > MAX_PATTERN or pattern.count("{") > 2 or regex.search(r"\{[^}]*\d{3}", pattern):
            raise ColakitError(  # `regex` expands counted repetitions in memory
                f"adapter_config.json: the pattern {pattern[:60]!r} is too large"
            )
        try:
            left = max(self.deadline - time.monotonic(), 1e-6)
            return regex.fullmatch(pattern, name, timeout=left) is not None
        except (regex.error, TimeoutError, RecursionError) as error:
            raise ColakitError(
                f"adapter_config.json: the pattern {pattern[:60]!r} cannot be matched ({first_line(error)})"
            ) from None


def write_adapter(model: nn.Module, folder: Path, config: LoRAConfig, *, base: str) -> None:
    """Write the adapters and other trained modules of a GPTClassifier as an adapter folder for PEFT.

    A PiSSA adapter is converted to an equal LoRA adapter of rank 2R on the original base (PiSSA, appendix C).
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
    def alpha(name: str) -> float:  # at the rank that is written
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
        "target_modules": sorted({name.rpartition(".")[2] for name in layers})
        if ALL_LINEAR in config.target_modules
        else list(config.target_modules),
        "layers_to_transform": config.layers_to_transform,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != usual_rank},
        "alpha_pattern": {name: alpha(name) for name in layers if not math.isclose(alpha(name), usual_alpha)},
        "fan_in_fan_out": any(name.startswith("transformer.") for name in layers),  # GPT-2's Conv1D
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
    }


def _modules_to_save(model: nn.Module, saved: Iterable[str]) -> list[str]:
    """Return the modules of parameters `saved`: by leaf name, or in full where another module shares it."""
    modules = {name.rpartition(".")[0] for name in saved}
    others = {name for name, _ in model.named_modules()} - modules
    leaves = {name.rpartition(".")[2] for name in others}
    return sorted({leaf if (leaf := name.rpartition(".")[2]) not in leaves else name for name in modules})
