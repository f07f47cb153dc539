"""Operations that a training step on the CPU spends its time in, each written for fewer passes over memory.

Each equals its plain counterpart (`tests/test_fused.py`); `docs/performance.md` says what each is worth.

Shapes: B batch, H heads, d width of a head, T tokens, D width, V vocabulary, N rows: all tokens of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from colakit.native import MOST_ELEMENTS, Kernels, Mask, active

IGNORED = -100
"""Target of a row that does not count, as in `torch.nn.functional.cross_entropy`."""
ROWS_AT_A_TIME = 1024
SQRT_8_OVER_PI = math.sqrt(8 / math.pi)
IN_CACHE = 2**16  # elements; a few fp32 copies of them fit into a core's second-level cache


Weigh = Callable[[Tensor], Tensor]
"""Maps the nats (B,) of some groups of sentences to a loss, a scalar: the sum of those of each group."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weigh: Weigh = torch.sum, group: int = 1
) -> Tensor:
    """Return Σ weigh(nats), fp32, of the sentences' nats Σₜ cross_entropy(hidden · weightᵀ, targets).

    Logits stand in memory for about `ROWS_AT_A_TIME` tokens at a time, and for one group of sentences at
    least. The gradient is computed beside the loss, as softmax minus one-hot; backward scales it.

    Args:
        hidden: (B, T, D).
        weight: (V, D).
        targets: (B, T) int64, `IGNORED` where a token does not count; it costs nothing then.
        weigh: what is made of the sentences' nats.
        group: consecutive sentences that `weigh` wants to see together.
    """
    device, learns = hidden.device, torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
    kernels = _kernels(device, dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets, weigh, group, dtype, kernels, learns)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weigh: Weigh,
        group: int,
        dtype: torch.dtype,
        kernels: Kernels | None,
        learns: bool,
    ) -> Tensor:
        matrix = weight.to(dtype)
        wants_hidden, wants_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        wants_grad = wants_hidden or wants_weight
        grad_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None  # a frozen one has none
        total = torch.zeros((), device=hidden.device)
        sentences = max(1, ROWS_AT_A_TIME // max(1, hidden.shape[1]) // group) * group
        for start in range(0, len(hidden), sentences):
            chunk = slice(start, start + sentences)
            counted = (targets[chunk] != IGNORED).nonzero(as_tuple=True)  # waits for a GPU
            index = targets[chunk][counted]  # (n,), n tokens that count
            rows = hidden[chunk][counted].to(dtype)  # (n, D)
            nats, gradient = _cross_entropy(rows @ matrix.t(), index, kernels)
            losses = torch.zeros(targets[chunk].shape, device=hidden.device)  # (b, T)
            losses[counted] = nats
            loss, slope = _with_slope(weigh, losses.sum(dim=1), wants_grad)
            total += loss
            if not wants_grad:
                continue
            grad_logits = gradient(None if slope is None else slope[counted[0]])  # (n, V)
            if grad_hidden is not None:
                grad_hidden[chunk][counted] = grad_logits @ matrix
            if grad_weight is not None:
                grad_weight += grad_logits.t() @ rows
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        by_hidden = None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype) * grad
        by_weight = None if grad_weight is None else grad_weight * grad
        return by_hidden, by_weight, *(None,) * 6


def _cross_entropy(
    logits: Tensor, targets: Tensor, kernels: Kernels | None
) -> tuple[Tensor, Callable[[Tensor | None], Tensor]]:
    """Return the nats (N,) of `targets` (N,) by `logits` (N, V), and what makes a gradient of slopes (N,).

    The gradient is that of Σ slopes·nats by `logits`; without slopes, of Σ nats. It can be made once: it
    takes the logits' place.
    """
    if kernels is not None:
        nats, log_sums = kernels.cross_entropy(logits, targets)
        return nats, partial(kernels.cross_entropy_backward, logits, targets, log_sums)
    index = targets[:, None]
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)

    def gradient(slopes: Tensor | None) -> Tensor:
        probs = log_probs.exp_()
        probs.scatter_add_(1, index, probs.new_full((1, 1), -1.0).expand_as(index))
        if slopes is not None:
            probs *= slopes[:, None]
        return probs.to(logits.dtype)

    return -log_probs.gather(1, index).squeeze(1), gradient


def _with_slope(weigh: Weigh, nats: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Return weigh(nats), and its gradient by the nats (b,): None where it is one, or not wanted."""
    if weigh is torch.sum or not wants_slope:
        return weigh(nats), None
    with torch.enable_grad():
        leaf = nats.requires_grad_()
        loss = weigh(leaf)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def short_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention softmax(q·kᵀ/√d)·v, (B, T, H, d), of queries, keys and values together.

    For a few dozen tokens it is one kernel, where there are kernels; else two batched matrix products, which
    up to a few hundred tokens train faster on a CPU than the flash kernel, whose backward is slow there.

    Args:
        qkv: (B, T, 3, H, d).
        dropout: probability at which a weight of the softmax is dropped.
    """
    batch, tokens, _, heads, width = qkv.shape
    kernels = _kernels(qkv.device, qkv.dtype)
    if kernels is not None and kernels.attends(batch, tokens, heads, width):
        starts = torch.arange(0, (batch + 1) * tokens, tokens)
        return packed_attention(qkv.flatten(0, 1), starts, dropout).unflatten(0, (batch, tokens))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
    future = torch.full((tokens, tokens), -math.inf, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1)).float() * width**-0.5  # (B, H, T, T)
    probs = (scores + future).softmax(dim=-1).to(q.dtype)
    return ((drop(probs, dropout) if dropout else probs) @ v).transpose(1, 2)


def packs(input_ids: Tensor, last: Tensor, num_heads: int, weight: Tensor) -> bool:
    """Tell whether `packed_attention` would take these sentences, padded (B, T), now.

    Args:
        last: (B,), where each ends; one that ends nowhere in T is left to what complains of it.
        weight: (…, D) of the model; what is multiplied has its type, or autocast's.
    """
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    kernels = _kernels(weight.device, dtype)
    batch, longest = input_ids.shape
    if kernels is None or not kernels.attends(batch, longest, num_heads, weight.shape[-1] // num_heads):
        return False
    return last.dtype == torch.int64 and bool(((last >= 0) & (last < longest)).all())


def packed_attention(qkv: Tensor, starts: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal self-attention, (N, H, d), of sentences that stand one after another, where it `packs`.

    Args:
        qkv: (N, 3, H, d).
        starts: (B + 1,) int64; sentence b has the rows from `starts[b]` up to `starts[b + 1]`.
        dropout: as in `short_attention`.
    """
    kernels = _kernels(qkv.device, qkv.dtype)
    assert kernels is not None
    return _NativeAttention.apply(qkv, starts, dropout, kernels)


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, starts: Tensor, dropout: float, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.mask = kernels, Mask.drawn(dropout)
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, starts)
        return kernels.attention(qkv, starts, ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, starts = ctx.saved_tensors
        return ctx.kernels.attention_backward(qkv, starts, grad.contiguous(), ctx.mask), None, None, None


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> Tensor:
    """Return x·Wᵀ + bias + scaling·(x·Aᵀ)·Bᵀ, with gradients for x, A and B only.

    The update is added into the product in place, the scaling is applied to B, and x is cast once: nothing
    besides the two products touches a tensor of the output's size. Thin products have the adapter's part on
    their left: the other way round, some take several times as long in fp32.

    Args:
        x: (…, D_in).
        weight: W (D_out, D_in), frozen, in the type that is computed in or in fp32.
        lora_a, lora_b: A (R, D_in) and B (D_out, R).
    """
    return _LoRALinear.apply(x, weight, bias, lora_a, lora_b, scaling)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
    ) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, D_in)
        weight, down, up = weight.to(dtype), lora_a.to(dtype), (lora_b * scaling).t().to(dtype).contiguous()
        with torch.autocast(device, enabled=False):
            inner = (down @ rows.t()).t()  # (N, R)
            y = rows @ weight.t()
            if bias is None:
                y.addmm_(inner, up)
            else:  # the bias is one more direction, whose inner value is always one
                y.addmm_(F.pad(inner, (0, 1), value=1.0), torch.cat([up, bias.to(dtype)[None]]))
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)  # (N, D_out)
        grad_inner = (up @ grad.t()).t()  # (N, R)
        grad_a = (grad_inner.t() @ rows).float()
        grad_b = (inner.t() @ grad).t().float() * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, down).to(ctx.dtype).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


class Dropout(torch.nn.Dropout):
    """Dropout whose mask costs 16 random bits an element, a fraction of what `bernoulli_` takes on a CPU.

    The probability is rounded to a multiple of 2⁻¹⁶, and the survivors are scaled by what it became.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return `input` with elements dropped, in training mode."""
        return drop(input, self.p) if self.training and self.p else input

    def add_to(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + `branch`, whose elements are dropped in training mode; fp32 like `x`, of one shape."""
        if not (self.training and self.p):
            return x + branch
        plain = x.dtype != torch.float32 or x.shape != branch.shape or branch.numel() >= MOST_ELEMENTS
        if not plain and (kernels := _kernels(branch.device, branch.dtype)) is not None:
            return _NativeAddDropped.apply(x, branch, self.p, kernels)
        return x + drop(branch, self.p)


class _NativeAddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, probability: float, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.mask = kernels, Mask.drawn(probability)
        return kernels.add_dropped(x.contiguous(), branch.contiguous(), ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, ctx.kernels.add_dropped_backward(grad.contiguous(), ctx.mask), None, None


def drop(x: Tensor, probability: float) -> Tensor:
    """Return `x` with elements zeroed at `probability`, the others scaled so that the mean stays."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    level = round(probability * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    words = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(words, level - 2**15, out=torch.empty_like(words))  # 0 or 1; a bool converts slowly
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - level))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GPT-2's GELU, x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks & Gimpel, arXiv:1606.08415).

    On a CPU it is computed as x·sigmoid(2y), which is the same and spares the hyperbolic tangent, and its
    slope beside it, so that backward is one product.
    """
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    if torch.compiler.is_compiling():  # one kernel, whose slope the compiler finds
        y = x.float()
        return (y * torch.sigmoid(SQRT_8_OVER_PI * (y + 0.044715 * y * y * y))).to(x.dtype)
    if (kernels := _kernels(x.device, x.dtype)) is not None:
        return _NativeGelu.apply(x, kernels)
    return _Gelu.apply(x)


class _NativeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels) -> Tensor:
        y, slope = kernels.gelu(x.contiguous())
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


class _Gelu(torch.autograd.Function):
    """Works on a few rows at a time, which stay in the processor's cache over all its passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        linear, cubic = torch.tensor(SQRT_8_OVER_PI), 0.044715 * SQRT_8_OVER_PI
        flat = x.reshape(-1)
        result = torch.empty_like(flat)
        slope = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        for start in range(0, len(flat), IN_CACHE):
            chunk = slice(start, start + IN_CACHE)
            y = flat[chunk].float()
            squared = y * y
            sigmoid = torch.add(linear, squared, alpha=cubic).mul_(y).sigmoid_()
            result[chunk] = y * sigmoid
            if slope is not None:  # of y·sigmoid(z(y)): sigmoid + y·z'·sigmoid·(1 - sigmoid)
                inner = torch.add(linear, squared, alpha=3 * cubic).mul_(y)
                slope[chunk] = torch.ops.aten.sigmoid_backward(inner, sigmoid).add_(sigmoid)
        ctx.save_for_backward(slope)
        ctx.shape = x.shape
        return result.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope.view(ctx.shape)


def _kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the kernels to compute with: in training alone, so that answers are the same without them."""
    if device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    return active(dtype)
