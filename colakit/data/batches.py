"""Batches grouped by length, in an order that is a pure function of (seed, epoch).

Shapes: B batch, T tokens of the batch's longest sentence, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from colakit.data.tokens import Tokens

UNLABELLED = -100  # what torch's cross-entropy leaves out
BATCHES_PER_CHUNK = 24  # sentences are sorted by length within this many batches' worth of shuffled data


@dataclass(frozen=True)
class Batch:
    """Sentences of like length, padded on the right.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 at real tokens.
        labels: (B,) int64, `UNLABELLED` where there is none; or None.
        teacher_logits: (B, C) fp32, or None.
        teacher_hidden: (B, D) fp16, the teacher's state that its head reads, or None.
        states: (B, T, D) fp32, what the model's frozen blocks make of the tokens, or None.
        progress: share of the run that is behind it, for what changes as training goes on.
        weight: 0 for a filler that keeps a data-parallel process in step without counting, else 1.
        group: consecutive sentences that stay together.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_hidden: Tensor | None = None
    states: Tensor | None = None
    progress: float = 0.0
    weight: float = 1.0
    group: int = 1

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def split(self, max_micro_batch_size: int | None) -> list[Batch]:
        """Return the batch in parts of at most `max_micro_batch_size` sentences (at least one group)."""
        if max_micro_batch_size is None or len(self) <= max_micro_batch_size:
            return [self]
        size = max(self.group, max_micro_batch_size - max_micro_batch_size % self.group)
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, rows: slice) -> Batch:
        values: dict[str, Any] = {name: tensor[rows] for name, tensor in self.tensors().items()}
        part = replace(self, **values)
        return part.with_width(int(part.attention_mask.sum(dim=1).max()))

    def with_width(self, width: int) -> Batch:
        """Return the batch with T = `width`: padding is added or, negative padding, cut off."""
        if not (more := width - self.input_ids.shape[1]):
            return self
        return replace(
            self,
            input_ids=F.pad(self.input_ids, (0, more)),
            attention_mask=F.pad(self.attention_mask, (0, more)),
            states=None if self.states is None else F.pad(self.states, (0, 0, 0, more)),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {
            name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Examples:
    """Tokenised sentences with what is to be learnt about them.

    Attributes:
        tokens: N sentences.
        labels: (N,) int64, `UNLABELLED` where there is none.
        teacher_logits: (N, C) fp32, or None.
        teacher_hidden: (N, D) fp16, or None.
        states: (L, D) fp32, what the model's frozen blocks make of the L tokens, or None.
        group: consecutive sentences that stay together in a batch; N is a multiple of it.
    """

    tokens: Tokens
    labels: NDArray[np.int64]
    teacher_logits: NDArray[np.float32] | None = None
    teacher_hidden: NDArray[np.float16] | None = None
    states: Tensor | None = None
    group: int = 1

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(
        self, index: Sequence[int] | NDArray[np.int64], weight: float = 1.0, progress: float = 0.0
    ) -> Batch:
        """Return the sentences at `index` as one padded batch."""
        index = np.asarray(index)
        input_ids, attention_mask = pad(self.tokens, index)
        logits, hidden = (
            None if values is None else torch.from_numpy(values[index])
            for values in (self.teacher_logits, self.teacher_hidden)
        )
        labels = torch.from_numpy(self.labels[index])
        states = None if self.states is None else pad_states(self.states, self.tokens, index)
        return Batch(input_ids, attention_mask, labels, logits, hidden, states, progress, weight, self.group)


def pad(tokens: Tokens, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask), both (B, T) int64, of the sentences at `index`."""
    input_ids, attention_mask = tokens.padded(index)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def pad_states(states: Tensor, tokens: Tokens, index: NDArray[np.int64]) -> Tensor:
    """Return (B, T, D), the rows of `states` (L, D) that belong to the tokens of the sentences at `index`."""
    ends = zip(tokens.offsets[index], tokens.offsets[index + 1], strict=True)
    return pad_sequence([states[start:end] for start, end in ends], batch_first=True)


def plan_epoch(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int, group: int = 1
) -> list[NDArray[np.int64]]:
    """Return the epoch's batches as arrays of sentence numbers; the last drawn batch may be short.

    Sentences are shuffled, sorted by length within chunks of `BATCHES_PER_CHUNK` batches, cut into batches,
    and the batches shuffled: little padding, yet every epoch mixes sentences anew. Every `group` consecutive
    sentences stay together, in one batch; its size is a multiple of theirs.
    """
    if group > 1:
        assert batch_size % group == 0, "a batch holds whole groups"
        plan = plan_epoch(lengths.reshape(-1, group).max(axis=1), batch_size // group, seed, epoch)
        return [(batch[:, None] * group + np.arange(group)).ravel() for batch in plan]
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    size = batch_size * BATCHES_PER_CHUNK
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    by_length = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]
    batches = [
        chunk[start : start + batch_size] for chunk in by_length for start in range(0, len(chunk), batch_size)
    ]
    return [batches[i] for i in generator.permutation(len(batches))]


def micro_batches(
    examples: Examples,
    index: NDArray[np.int64],
    micro_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: float = 0.0,
) -> list[Batch]:
    """Return one process's share of the global batch `index`, cut into micro-batches.

    Process `rank` takes every `world_size`-th sentence (or group of them), so all have like lengths. One that
    gets none takes a single one with weight 0, so that all processes run the same collective operations.
    """
    groups = index.reshape(-1, examples.group)
    size = max(1, micro_batch_size // examples.group)
    most = -(-len(groups) // world_size)  # the largest share decides how many micro-batches all run
    share = groups[rank::world_size]
    parts = [share[start * size : (start + 1) * size].ravel() for start in range(-(-most // size))]
    return [
        examples.batch(part, 1.0, progress) if len(part) else examples.batch(groups[0], 0.0, progress)
        for part in parts
    ]
