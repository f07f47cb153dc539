"""Bases in GGUF files, the format of llama.cpp: config and weights.

GGUF stores quantised matrices, which the package `gguf` dequantises, and metadata. The architecture `llama`
stores matrices of queries and keys with their rows permuted for another order of the rotary dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colakit.data.gguf_tokenizer import open_gguf
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.layers import rotary_frequencies
from colakit.utils.documents import library_errors

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TENSORS = {  # name in a GGUF block -> name in a block of the model
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling as a tensor, (d/2,)


def gguf_config(path: Path) -> GPTConfig:
    """Return the config of the model in a GGUF file.

    Raises:
        ColakitError: if the file is broken, or its model is not supported.
    """
    file = open_gguf(path)
    with library_errors(path, hint="Choose another base."):
        return _config(file.facts, file.tensors)


def _config(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> GPTConfig:
    family = facts["general.architecture"]
    if family not in ARCHITECTURES:
        raise ValueError(f"architecture is {family!r}; colakit loads {', '.join(ARCHITECTURES)}")

    def fact(name: str, default: Any = None) -> Any:
        return facts[f"{family}.{name}"] if default is None else facts.get(f"{family}.{name}", default)

    width, heads = fact("embedding_length"), fact("attention.head_count")
    size = fact("attention.key_length", width // heads)
    if fact("rope.dimension_count", size) != size:
        raise ValueError(f"rope.dimension_count is {fact('rope.dimension_count')}; only {size} is supported")
    theta = float(fact("rope.freq_base", 10_000.0))
    return GPTConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        num_positions=fact("context_length"),
        width=width,
        num_layers=fact("block_count"),
        num_heads=heads,
        num_kv_heads=fact("attention.head_count_kv", heads),
        head_width=size,
        mlp_width=fact("feed_forward_length"),
        activation="silu",
        norm_epsilon=round(fact("attention.layer_norm_rms_epsilon"), 12),  # stored in fp32
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        family=family,
        rope_theta=theta,
        **_scaling(fact("rope.scaling.type", "none"), fact("rope.scaling.factor", 1.0), theta, size, tensors),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings="output.weight" not in tensors,
    )


def _scaling(kind: str, factor: float, theta: float, size: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the rotary scaling; Llama 3's is a tensor of divisors, (d/2,)."""
    if ROPE_FACTORS not in tensors:
        if kind not in ("none", "linear"):
            raise ValueError(f"rope.scaling.type is {kind!r}; none and linear are supported")
        return {"rope_factor": float(factor) if kind == "linear" else 1.0}
    divisors = torch.tensor(tensors[ROPE_FACTORS].data)
    fields: dict[str, Any] = {"rope_factor": float(divisors.max()), "rope_original_positions": 8192}
    plain = GPTConfig(family="llama", head_width=size, rope_theta=theta)
    expected = rotary_frequencies(plain) / rotary_frequencies(replace(plain, **fields))
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(f"{ROPE_FACTORS} is not the scaling of Llama 3; other scalings are not supported")
    return fields


def gguf_weights(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file in fp32, with the model's names.

    Raises:
        ColakitError: if a tensor cannot be dequantised.
    """
    from gguf import dequantize

    tensors: dict[str, Tensor] = {}
    for stored in open_gguf(path).tensors.values():
        if stored.name == ROPE_FACTORS:
            continue
        where = f"{path}: {stored.name} of type {stored.tensor_type.name}"
        with library_errors(where, hint="Choose another quantisation."):
            values = dequantize(stored.data, stored.tensor_type)
            tensor = torch.from_numpy(values.astype("float32", copy=True))
        heads = {"attn_q": config.num_heads, "attn_k": config.kv_heads}.get(stored.name.split(".")[-2])
        if heads is not None and config.family == "llama":
            tensor = _interleaved_to_halves(tensor, heads)
        tensors[_name(stored.name)] = tensor
    return tensors


def _interleaved_to_halves(tensor: Tensor, heads: int) -> Tensor:
    """Return rows in the order of `rotate`; llama.cpp stores each rotary pair in neighbouring rows."""
    pairs = tensor.unflatten(0, (heads, -1, 2))  # (H, d/2, 2, …)
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay."""
    if name in OUTSIDE or not name.startswith("blk."):
        return OUTSIDE.get(name, name)
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{TENSORS.get(part, part)}.{kind}"
