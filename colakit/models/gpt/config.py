"""Shape of a decoder-only transformer: GPT-2, or the Llama family (Llama, Qwen2, Qwen3)."""

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
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3")
GPT_SIZES = {
    "vocab_size": 2**24,
    "num_positions": 2**20,
    "width": 2**16,
    "num_layers": 2**8,
    "num_heads": 2**16,
}
OPTIONAL_SIZES = {
    "mlp_width": 2**18,
    "num_kv_heads": 2**16,
    "head_width": 2**12,
    "rope_original_positions": 2**20,
}


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a decoder-only transformer; the defaults are those of GPT-2 small.

    GPT-2 has learnt positions, LayerNorms, biases and a GELU MLP. The other families have rotary positions
    (Su et al. 2021, arXiv:2104.09864), RMSNorms and a gated MLP (Shazeer 2020, arXiv:2002.05202).

    Attributes:
        vocab_size: V, tokens in the vocabulary.
        num_positions: longest sequence, in tokens.
        width: D, of the residual stream.
        mlp_width: inner width of the MLP; None means 4·D.
        activation: a key of `ACTIVATIONS`, in transformers' spelling.
        norm_epsilon: added to the variance in the norms.
        embedding_dropout, attention_dropout, residual_dropout: probabilities, active in training mode only.
        family: `model_type` of transformers; decides the names of the parameters.
        num_kv_heads: heads of keys and values, shared by groups of queries; None means `num_heads`.
        head_width: d; None means D / `num_heads`.
        rope_theta: base of the rotary wavelengths.
        rope_factor: divides the rotary frequencies; 1 leaves them as they are.
        rope_original_positions: Llama 3's scaling, which divides the low frequencies only; None divides all.
        rope_low_frequency, rope_high_frequency: Llama 3's bounds, in wavelengths per original context.
        qkv_bias, output_bias, mlp_bias: which linear layers have a bias (GPT-2: all).
        qk_norm: whether queries and keys of each head are normalised (Qwen3).
        tied_embeddings: whether the output layer is the token embedding.
    """

    vocab_size: int = 50257
    num_positions: int = 1024
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int | None = None
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    family: str = "gpt2"
    num_kv_heads: int | None = None
    head_width: int | None = None
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    rope_original_positions: int | None = None
    rope_low_frequency: float = 1.0
    rope_high_frequency: float = 4.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        optional = {name: bound for name, bound in OPTIONAL_SIZES.items() if getattr(self, name) is not None}
        check_shape(self, GPT_SIZES | optional)
        if not (isinstance(self.norm_epsilon, float) and 0 < self.norm_epsilon < 1):
            raise ValueError(f"norm_epsilon (={self.norm_epsilon!r}) must be between 0 and 1")
        if self.head_width is None and self.width % self.num_heads:
            raise ValueError(f"width (={self.width}) must be divisible by num_heads (={self.num_heads})")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads (={self.num_heads}) must be divisible by num_kv_heads (={self.num_kv_heads})"
            )
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(f"activation (={self.activation!r}) must be one of {', '.join(ACTIVATIONS)}")
        if self.family not in FAMILIES:
            raise ValueError(f"family (={self.family!r}) must be one of {', '.join(FAMILIES)}")
        self._check_rotary()

    def _check_rotary(self) -> None:
        for name in ("rope_theta", "rope_factor", "rope_low_frequency", "rope_high_frequency"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < 1e12):
                raise ValueError(f"{name} (={value!r}) must be a positive number")
        if self.family != "gpt2" and self.head_size % 2:
            raise ValueError(f"head_width (={self.head_size}) must be even for rotary positions")
        if self.rope_high_frequency <= self.rope_low_frequency:
            raise ValueError("rope_high_frequency must be greater than rope_low_frequency")

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width d of a head."""
        return self.head_width or self.width // self.num_heads

    @property
    def body_name(self) -> str:
        """Name of the body in the parameters' names, as in transformers."""
        return "transformer" if self.family == "gpt2" else "model"
