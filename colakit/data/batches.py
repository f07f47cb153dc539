"""Batches grouped by length, in an order that is a pure function of (seed, epoch).

Shapes: N sentences, L tokens in all, B batch, T tokens of its longest sentence, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from colakit.data.tokens import Tokens

UNLABELLED = -100  # ignored by torch's cross-entropy
BATCHES_PER_CHUNK = 24  # batches' worth of shuffled sentences that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """Sentences of similar length, padded on the right.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, 1 at real tokens.
        labels: (B,) int64 with `UNLABELLED` for none; or None.
        teacher_logits: (B, C) fp32, or None.
        teacher_hidden: (B, D) fp16, the hidden state that the teacher's head reads; or None.
        states: (B, T, D) fp32, output of the model's frozen blocks; or None.
        progress: fraction of the training steps done, for scheduled loss weights.
        weight: factor of the loss. 0 for a filler that keeps data-parallel processes in step, else 1.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_hidden: Tensor | None = None
    states: Tensor | None = None
    progress: float = 0.0
    weight: float = 1.0

    unit: ClassVar[int] = 1  # consecutive sentences that are never separated

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def split(self, max_micro_batch_size: int | None) -> list[Batch]:
        """Return micro-batches of at most `max_micro_batch_size` sentences (at least one unit)."""
        if max_micro_batch_size is None or len(self) <= max_micro_batch_size:
            return [self]
        size = max(self.unit, max_micro_batch_size - max_micro_batch_size % self.unit)
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, rows: slice) -> Batch:
        part = replace(self, **cast(Any, {name: tensor[rows] for name, tensor in self.tensors().items()}))
        return part.with_width(int(part.attention_mask.sum(dim=1).max()))

    def with_width(self, width: int) -> Batch:
        """Return the batch padded or cut to T = `width` tokens."""
        if not (more := width - self.input_ids.shape[1]):
            return self
        return replace(
            self,
            input_ids=F.pad(self.input_ids, (0, more)),  # negative padding cuts
            attention_mask=F.pad(self.attention_mask, (0, more)),
            states=None if self.states is None else F.pad(self.states, (0, 0, 0, more)),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **cast(Any, moved))


class PairBatch(Batch):
    """A batch of pairs: rows 2i and 2i + 1 are a real sentence and its corrupted copy."""

    unit = 2


@dataclass(frozen=True)
class Examples:
    """Tokenised sentences with their training targets.

    Attributes:
        tokens: N sentences.
        labels: (N,) int64, `UNLABELLED` for none.
        teacher_logits: (N, C) fp32, or None.
        teacher_hidden: (N, D) fp16, or None.
        states: (L, D) fp32, output of the model's frozen blocks; or None.
    """

    tokens: Tokens
    labels: NDArray[np.int64]
    teacher_logits: NDArray[np.float32] | None = None
    teacher_hidden: NDArray[np.float16] | None = None
    states: Tensor | None = None

    batch_type: ClassVar[type[Batch]] = Batch

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
        return self.batch_type(input_ids, attention_mask, labels, logits, hidden, states, progress, weight)

    def plan_epoch(self, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """Return the epoch's batches, as `plan_epoch` does."""
        return plan_epoch(self.tokens.lengths, batch_size, seed, epoch)


class PairExamples(Examples):
    """Pairs of sentences that stay together: 2i is a real sentence, 2i + 1 its corrupted copy."""

    batch_type = PairBatch

    def plan_epoch(self, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """Return the epoch's batches; `batch_size` counts sentences and must be even."""
        assert batch_size % 2 == 0
        lengths = self.tokens.lengths.reshape(-1, 2).max(axis=1)  # of pairs
        plan = plan_epoch(lengths, batch_size // 2, seed, epoch)
        return [np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel() for pairs in plan]


def pad(tokens: Tokens, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask), both (B, T) int64, of the sentences at `index`."""
    input_ids, attention_mask = tokens.padded(index)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def pad_states(states: Tensor, tokens: Tokens, index: NDArray[np.int64]) -> Tensor:
    """Return the rows of `states` (L, D) of the sentences at `index`, padded to (B, T, D)."""
    ends = zip(tokens.offsets[index], tokens.offsets[index + 1], strict=True)
    return pad_sequence([states[start:end] for start, end in ends], batch_first=True)


def plan_epoch(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the epoch's batches as arrays of sentence indices; one batch may be short.

    Sentences are shuffled, sorted by length within chunks of `BATCHES_PER_CHUNK` batches, cut into batches,
    and the batches shuffled. This needs little padding, and still mixes sentences anew in every epoch.
    """
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
    """Return one process's share of the global batch `index`, split into micro-batches.

    Process `rank` takes every `world_size`-th sentence (or pair), so all processes have similar lengths. A
    process without sentences left takes one with weight 0, so that all run the same collective operations.
    """
    unit = examples.batch_type.unit
    units = index.reshape(-1, unit)
    size = max(1, micro_batch_size // unit)
    largest_share = -(-len(units) // world_size)  # decides the number of micro-batches of all processes
    share = units[rank::world_size]
    parts = [share[start * size : (start + 1) * size].ravel() for start in range(-(-largest_share // size))]
    return [
        examples.batch(part, 1.0, progress) if len(part) else examples.batch(units[0], 0.0, progress)
        for part in parts
    ]
