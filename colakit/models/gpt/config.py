"""Shape of a GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from colakit.kernels.fused import gelu_tanh
from colakit.models.config_checks import check_shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
GPT_SIZES = {
    "vocab_size": 2**24,
    "num_positions": 2**20,
    "width": 2**16,
    "num_layers": 2**8,
    "num_heads": 2**16,
}


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT-2; the defaults are those of GPT-2 small.

    Attributes:
        vocab_size: V, tokens in the vocabulary.
        num_positions: longest sequence, in tokens.
        width: D, of the residual stream.
        mlp_width: inner width of the MLP; None means 4·D.
        activation: a key of `ACTIVATIONS`, in transformers' spelling.
        embedding_dropout, attention_dropout, residual_dropout: probabilities, active in training mode only.
    """

    vocab_size: int = 50257
    num_positions: int = 1024
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int | None = None
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_shape(self, GPT_SIZES | ({"mlp_width": 2**18} if self.mlp_width is not None else {}))
        if not (isinstance(self.layer_norm_epsilon, float) and 0 < self.layer_norm_epsilon < 1):
            raise ValueError(f"layer_norm_epsilon (={self.layer_norm_epsilon!r}) must be between 0 and 1")
        if self.width % self.num_heads:
            raise ValueError(f"width (={self.width}) must be divisible by num_heads (={self.num_heads})")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(f"activation (={self.activation!r}) must be one of {', '.join(ACTIVATIONS)}")
