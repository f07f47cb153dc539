"""Many classifiers on one frozen base: one forward pass over sentences of different adapters.

Shapes: N rows (the tokens of packed sentences), S sentences (as computed by one adapter each), D width,
C classes, H heads, d head width.

Sentences are packed without padding and sorted by adapter. Each linear layer of the base multiplies all rows
at once and then adds each adapter's low-rank product to that adapter's rows, as S-LoRA does (Sheng et al.
2023, arXiv:2311.03285). Blocks that an adapter does not change are computed once for all such adapters.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from colakit.kernels.attention import packed_attention
from colakit.kernels.int8 import Int8Linear
from colakit.kernels.llama import Rotation
from colakit.kernels.low_rank import add_low_rank
from colakit.kernels.native import LowRankGroup, kernels_for
from colakit.models.gpt.attention import Attention
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.gpt.transformer import Block
from colakit.models.lora import NORMS
from colakit.models.meta_device import without_weights
from colakit.runtime.device import Compute, prepare_cpu
from colakit.serving.adapter import Adapter, extract_adapter
from colakit.serving.rows import Stage, plan_stages

Request = tuple[Adapter, NDArray[np.int32]]
"""An adapter and the tokens of a sentence."""

UNCHANGED = Adapter({}, {}, torch.empty(0), 0)
"""The base as an adapter."""


class Routing(threading.local):
    """Adapters of the rows that this thread is computing.

    Attributes:
        groups: number of rows -> (adapter, first row, row after the last), all rows in their order; the base
            is an adapter without changes. A layer's input has either one row for each token or one for each
            sentence.
    """

    groups: dict[int, list[tuple[Adapter, int, int]]]


class BankLinear(nn.Module):
    """A frozen linear layer, in `dtype` or int8, with the changes of all adapters."""

    def __init__(self, base: nn.Linear | Int8Linear, name: str, routing: Routing, dtype: torch.dtype) -> None:
        super().__init__()
        self.base, self.name, self.routing, self.dtype = base, name, routing, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D_out) for (N, D_in)."""
        x = x.to(self.dtype)
        y = self.base(x)
        products: list[LowRankGroup] = []
        for adapter, start, stop in self.routing.groups[len(x)]:
            if (change := adapter.linears.get(self.name)) is None:
                continue
            change.rescale(y[start:stop])
            if change.down is not None and change.up is not None:
                products.append((change.down, change.up, start, stop))
        if products:
            add_low_rank(x, y, products)
        return y


class BankNorm(nn.Module):
    """A frozen norm with the weights of all adapters."""

    def __init__(self, base: nn.LayerNorm | nn.RMSNorm, name: str, routing: Routing) -> None:
        super().__init__()
        self.base, self.name, self.routing = base, name, routing

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, …) fp32 for (N, …)."""
        groups = self.routing.groups[len(x)]
        if not any(self.name in adapter.norms for adapter, *_ in groups):
            return self.base(x)
        base = self.base
        if isinstance(base, nn.LayerNorm):
            y = F.layer_norm(x.float(), base.normalized_shape, eps=base.eps)
        else:
            y = F.rms_norm(x.float(), base.normalized_shape, eps=base.eps)
        own = base.weight, getattr(base, "bias", None)
        for adapter, start, stop in groups:
            weight, bias = adapter.norms.get(self.name, own)
            rows = y[start:stop].mul_(weight)
            if bias is not None:
                rows.add_(bias)
        return y


class AdapterBank:
    """One frozen base and the forward pass of all of its adapters.

    Args:
        base: is moved to the device of `compute` and changed: its layers become those of the bank.
        compute: with int8, the linear layers multiply in it; their weights in its dtype are kept beside,
            because adapters that are loaded later are compared with them.
    """

    def __init__(self, base: GPT, compute: Compute) -> None:
        prepare_cpu()
        self.config, self.compute, self._routing = base.config, compute, Routing()
        shared = GPTClassifier(base.body, 1)
        replace(compute, int8=False).place(shared.requires_grad_(False)).eval()
        self.body = shared.body
        prefix = f"{self.config.body_name}."
        self._weights = {f"{prefix}{name}": tensor for name, tensor in self.body.state_dict().items()}
        for name, module in list(self.body.named_modules(prefix=self.config.body_name)):
            parent, _, leaf = name.removeprefix(prefix).rpartition(".")
            if isinstance(module, nn.Linear):
                multiplied = Int8Linear(module) if compute.int8 else module
                layer = BankLinear(multiplied, name, self._routing, compute.dtype)
                setattr(self.body.get_submodule(parent), leaf, layer)
            elif isinstance(module, NORMS):
                setattr(self.body.get_submodule(parent), leaf, BankNorm(module, name, self._routing))

    def base(self) -> GPT:
        """Return a language model without output layer that shares the base's tensors."""
        with without_weights():
            model = GPT(self.config)
        prefix = f"{self.config.body_name}."
        own = {name.removeprefix(prefix): tensor for name, tensor in self._weights.items()}
        model.body.load_state_dict(own, assign=True)
        return model.requires_grad_(False)

    def adapter_of(self, model: GPTClassifier, where: str) -> Adapter:
        """Return the adapter of a classifier that was made from `base()`; errors as of `extract_adapter`."""
        return extract_adapter(model, self._weights, self.compute.dtype, where)

    @torch.inference_mode()
    def logits(self, requests: Sequence[Request]) -> list[NDArray[np.float32]]:
        """Return the logits (C,) of each request; C is that of its adapter."""
        adapters: dict[int, int] = {}
        sentences: dict[bytes, int] = {}
        pairs = [
            (
                adapters.setdefault(id(adapter), len(adapters)),
                sentences.setdefault(ids.tobytes(), len(sentences)),
            )
            for adapter, ids in requests
        ]
        by_number = {number: adapter for (adapter, _), (number, _) in zip(requests, pairs, strict=True)}
        ordered = [*(by_number[number] for number in range(len(by_number))), UNCHANGED]  # at index `BASE`
        texts = [np.frombuffer(key, dtype=np.int32) for key in sentences]
        stages = plan_stages(pairs, [adapter.first_block for adapter in ordered[:-1]], self.config.num_layers)
        with self.compute.autocast():
            hidden = self._forward(stages, texts, ordered)  # (S, D) fp32
        rows = hidden.float()
        outputs: dict[tuple[int, int], NDArray[np.float32]] = {}
        for number, start, stop in stages[-1].groups():
            logits = F.linear(rows[start:stop], ordered[number].head).cpu().numpy()
            outputs |= zip(stages[-1].rows[start:stop], logits, strict=True)
        return [outputs[pair] for pair in pairs]

    def _forward(
        self, stages: Sequence[Stage], texts: Sequence[NDArray[np.int32]], adapters: Sequence[Adapter]
    ) -> Tensor:
        """Return the final hidden state (S, D) of the last token of each row of the last stage."""
        blocks = cast(list[Block], list(self.body.blocks))
        packed: Packed | None = None
        x: Tensor | None = None
        for stage, until in zip(stages, [*(s.block for s in stages[1:]), None], strict=True):
            if until is None:
                break
            before, packed = packed, Packed.of(stage, texts, self.compute.device)
            if x is None or before is None:
                x = self.body.embed(packed.input_ids, packed.positions)  # (N, D)
            else:
                x = x[packed.continues(before, stage.sources)]
            rotation = self.body.rotation(packed.positions)
            self._route(stage, packed, adapters)
            for block in blocks[stage.block : until]:
                rows = packed.ends if block is blocks[-1] else None
                x = _block(block, x, packed, rotation, rows)
        assert x is not None
        final = stages[-1]
        x = x[list(final.sources)]
        self._routing.groups = {len(x): [(adapters[a], start, stop) for a, start, stop in final.groups()]}
        return self.body.final_norm(x)

    def _route(self, stage: Stage, packed: Packed, adapters: Sequence[Adapter]) -> None:
        groups, starts = stage.groups(), packed.offsets
        self._routing.groups = {
            len(stage.rows): [(adapters[a], start, stop) for a, start, stop in groups],
            int(starts[-1]): [
                (adapters[a], int(starts[start]), int(starts[stop])) for a, start, stop in groups
            ],
        }


@dataclass
class Packed:
    """The tokens of a stage's rows, concatenated.

    Attributes:
        lengths: tokens of each row, (S,).
        offsets: (S + 1,); row s is `offsets[s]:offsets[s + 1]`.
        input_ids, positions: (N,).
        ends: index of each row's last token, (S,).
    """

    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    input_ids: Tensor
    positions: Tensor
    ends: Tensor

    @classmethod
    def of(cls, stage: Stage, texts: Sequence[NDArray[np.int32]], device: torch.device) -> Packed:
        """Concatenate the sentences of a stage's rows."""
        rows = [texts[sentence] for _, sentence in stage.rows]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        offsets = np.concatenate([[0], lengths.cumsum()])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        arrays = (np.concatenate(rows).astype(np.int64), within, offsets[1:] - 1)
        input_ids, positions, ends = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(lengths, offsets, input_ids, positions, ends)

    def continues(self, before: Packed, sources: Sequence[int]) -> Tensor:
        """Return the index (N,) into the tokens of the stage before."""
        first = np.repeat(before.offsets[list(sources)], self.lengths)
        return torch.from_numpy(first).to(self.positions.device) + self.positions


def _block(block: Block, x: Tensor, packed: Packed, rotation: Rotation | None, rows: Tensor | None) -> Tensor:
    """Return a block's output (N, D); with `rows` (S,), only these rows of it, (S, D)."""
    norm, attention, mlp_norm, mlp = block.parts()
    attended = _attention(attention, norm(x), packed, rotation)  # (N, H·d)
    if rows is not None:
        x, attended = x[rows], attended[rows]
    x = x + attention.output(attended)
    return x + mlp(mlp_norm(x))


def _attention(attention: Attention, x: Tensor, packed: Packed, rotation: Rotation | None) -> Tensor:
    """Return the heads (N, H·d) of causal self-attention within each row's tokens."""
    qkv = attention.qkv(x, rotation)  # (N, 3, H, d)
    longest = int(packed.lengths.max())
    kernels = kernels_for(qkv.device, qkv.dtype)
    if kernels is not None and kernels.supports_attention(len(packed.lengths), longest, *qkv.shape[2:]):
        return packed_attention(qkv, torch.from_numpy(packed.offsets)).flatten(1)
    lengths = torch.from_numpy(packed.lengths).to(x.device)
    real = torch.arange(longest, device=x.device) < lengths[:, None]  # (S, T)
    padded = qkv.new_zeros((*real.shape, *qkv.shape[1:]))
    padded[real] = qkv
    q, k, v = padded.permute(2, 0, 3, 1, 4)  # each (S, H, T, d)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=longest > 1)
    return y.transpose(1, 2)[real].flatten(1)
