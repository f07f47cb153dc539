"""config.json of the Llama family (Llama, Qwen2, Qwen3) in the transformers layout.

The names and shapes of the tensors are those of the model, so weights need no conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from colakit.models.gpt.config import GPTConfig

NAMES = {  # key of config.json -> field of GPTConfig
    "vocab_size": "vocab_size",
    "max_position_embeddings": "num_positions",
    "hidden_size": "width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "rms_norm_eps": "norm_epsilon",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tied_embeddings",
}
QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}
DEFAULTS: dict[str, dict[str, Any]] = {  # of transformers, for keys that a file omits
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
}
SHARED_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
FIXED: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
}
ROTARY_TYPES = ("default", "linear", "llama3")


def llama_config(raw: Mapping[str, Any]) -> GPTConfig:
    """Return the config of a Llama, Qwen2 or Qwen3, with transformers' defaults for missing keys.

    Raises:
        ValueError: if a field is wrong, or asks for something that is not supported.
    """
    family = raw["model_type"]
    for key, allowed in FIXED.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} (={raw[key]!r}) must be {allowed[0]}")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        raise ValueError("layer_types must be full_attention; sliding windows are not supported")
    values = {**SHARED_DEFAULTS, **DEFAULTS[family], **raw}
    fields: dict[str, Any] = {field: values[key] for key, field in NAMES.items() if key in values}
    fields |= {**_biases(values), **_rotary(raw), "embedding_dropout": 0.0, "residual_dropout": 0.0}
    config = GPTConfig(**fields, family=family, qk_norm=family == "qwen3")
    return replace(config, num_kv_heads=config.kv_heads, head_width=config.head_size)


def _biases(values: Mapping[str, Any]) -> dict[str, bool]:
    if values["model_type"] == "qwen2":
        return {"qkv_bias": True}
    biases = {key: values.get(key, False) for key in ("attention_bias", "mlp_bias")}
    if wrong := [key for key, value in biases.items() if not isinstance(value, bool)]:
        raise ValueError(f"{wrong[0]} must be true or false")
    attention, mlp = biases.values()
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}


def _rotary(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary fields; transformers 4 wrote `rope_theta` and `rope_scaling`, 5 `rope_parameters`."""
    given = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 10_000.0)}
    given = {**given, **(raw.get("rope_scaling") or {})}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROTARY_TYPES:
        raise ValueError(f"rope_type (={kind!r}) must be one of {', '.join(ROTARY_TYPES)}")
    fields = {"rope_theta": given.get("rope_theta", raw.get("rope_theta", 10_000.0))}
    if kind == "linear":
        fields["rope_factor"] = given["factor"]
    if kind == "llama3":
        fields |= {
            "rope_factor": given["factor"],
            "rope_low_frequency": given["low_freq_factor"],
            "rope_high_frequency": given["high_freq_factor"],
            "rope_original_positions": given["original_max_position_embeddings"],
        }
    return fields


def llama_json(config: GPTConfig) -> dict[str, Any]:
    """Return the content of config.json for `config`, without token ids and dtype."""
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_original_positions is not None:
        rotary |= {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low_frequency,
            "high_freq_factor": config.rope_high_frequency,
            "original_max_position_embeddings": config.rope_original_positions,
        }
    elif config.rope_factor != 1:
        rotary |= {"rope_type": "linear", "factor": config.rope_factor}
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    return {
        "architectures": [f"{names[config.family]}ForCausalLM"],
        "model_type": config.family,
        **{key: getattr(config, field) for key, field in NAMES.items()},
        "intermediate_size": config.mlp_width or 4 * config.width,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_parameters": rotary,
    }
