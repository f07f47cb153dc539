"""A tiny configuration of the Llama family."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
