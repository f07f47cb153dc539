"""Bases in GGUF files, the format of llama.cpp: config and weights.

GGUF stores quantised matrices, which the package `gguf` dequantises, and metadata. The architecture `llama`
stores matrices of queries and keys with their rows permuted for another order of the rotary dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from colakit.data.gguf import EMBEDDING, GgufFile, open_gguf
from colakit.models.gpt.config import GPT_SIZES, OPTIONAL_SIZES, GPTConfig
from colakit.models.gpt.layers import rotary_frequencies
from colakit.utils.documents import Document, library_errors, validate

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
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling as a tensor, (d/2,)


class GgufModel(Document):
    """The metadata of an architecture that colakit reads."""

    context_length: Annotated[int, Field(ge=1, le=GPT_SIZES["num_positions"])]
    embedding_length: Annotated[int, Field(ge=1, le=GPT_SIZES["width"])]
    block_count: Annotated[int, Field(ge=1, le=GPT_SIZES["num_layers"])]
    feed_forward_length: Annotated[int, Field(ge=1, le=OPTIONAL_SIZES["mlp_width"])]
    heads: int = Field(alias="attention.head_count", ge=1, le=GPT_SIZES["num_heads"])
    kv_heads: PositiveInt | None = Field(None, alias="attention.head_count_kv")
    key_length: PositiveInt | None = Field(None, alias="attention.key_length")
    rope_dimensions: int | None = Field(None, alias="rope.dimension_count")
    rope_theta: float = Field(10_000.0, alias="rope.freq_base")
    scaling: Literal["none", "linear"] = Field("none", alias="rope.scaling.type")
    factor: float = Field(1.0, alias="rope.scaling.factor")
    epsilon: float = Field(alias="attention.layer_norm_rms_epsilon")


def gguf_config(path: Path) -> GPTConfig:
    """Return the config of the model in a GGUF file.

    Raises:
        ColakitError: if the file is broken, or its model is not supported.
    """
    file = open_gguf(path)
    with library_errors(path, hint="Choose another base."):
        return _config(file)


def _config(file: GgufFile) -> GPTConfig:
    family, tensors = file.facts.get("general.architecture"), file.tensors
    if family not in ARCHITECTURES:
        raise ValueError(f"architecture is {str(family)[:60]!r}; colakit loads {', '.join(ARCHITECTURES)}")
    if EMBEDDING not in tensors:
        raise ValueError(f"tensor {EMBEDDING!r} is missing")
    fields = {key.removeprefix(f"{family}."): value for key, value in file.facts.items()}
    given = validate(fields, GgufModel)
    size = given.key_length or given.embedding_length // given.heads
    if given.rope_dimensions not in (None, size):
        raise ValueError(f"rope.dimension_count is {given.rope_dimensions}; only {size} is supported")
    return GPTConfig(
        vocab_size=tensors[EMBEDDING].shape[0],
        num_positions=given.context_length,
        width=given.embedding_length,
        num_layers=given.block_count,
        num_heads=given.heads,
        num_kv_heads=given.kv_heads or given.heads,
        head_width=size,
        mlp_width=given.feed_forward_length,
        activation="silu",
        norm_epsilon=round(given.epsilon, 12),  # stored in fp32
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        family=family,
        rope_theta=given.rope_theta,
        **_scaling(file, given, size),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings="output.weight" not in tensors,
    )


def _scaling(file: GgufFile, given: GgufModel, size: int) -> dict[str, Any]:
    """Return the fields of the rotary scaling; Llama 3's is a tensor of divisors, (d/2,)."""
    if ROPE_FACTORS not in file.tensors:
        return {"rope_factor": given.factor if given.scaling == "linear" else 1.0}
    if file.tensors[ROPE_FACTORS].shape != [size // 2]:
        raise ValueError(f"{ROPE_FACTORS} is {file.tensors[ROPE_FACTORS].shape}; it must be {[size // 2]}")
    divisors = torch.from_numpy(file.values(ROPE_FACTORS))
    fields: dict[str, Any] = {"rope_factor": float(divisors.max()), "rope_original_positions": 8192}
    plain = GPTConfig(family="llama", head_width=size, rope_theta=given.rope_theta)
    expected = rotary_frequencies(plain) / rotary_frequencies(replace(plain, **fields))
    if not torch.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(f"{ROPE_FACTORS} is not the scaling of Llama 3; other scalings are not supported")
    return fields


def gguf_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a GGUF file, with the model's names.

    Raises:
        ColakitError: if the file is broken.
    """
    tensors = open_gguf(path).tensors
    return {_name(name): tuple(tensors[name].shape) for name in tensors if name != ROPE_FACTORS}


def gguf_weights(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file in fp32, with the model's names.

    Args:
        config: of the file, whose shapes the tensors have.

    Raises:
        ColakitError: if a tensor cannot be dequantised.
    """
    tensors: dict[str, Tensor] = {}
    file = open_gguf(path)
    for stored in file.tensors:
        if stored == ROPE_FACTORS:
            continue
        name, tensor = _name(stored), torch.from_numpy(file.values(stored))
        heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        if heads is not None and config.family == "llama":
            tensor = _interleaved_to_halves(tensor, heads)
        tensors[name] = tensor
    return tensors


def _interleaved_to_halves(tensor: Tensor, heads: int) -> Tensor:
    """Return rows in the order of `rotate`; llama.cpp stores each rotary pair in neighbouring rows."""
    pairs = tensor.unflatten(0, (heads, -1, 2))  # (H, d/2, 2, …)
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay."""
    match name.split("."):
        case "blk", layer, part, kind if part in TENSORS:
            return f"model.layers.{layer}.{TENSORS[part]}.{kind}"
    return OUTSIDE.get(name, name)
