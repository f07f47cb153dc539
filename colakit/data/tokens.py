"""Ragged arrays of token ids, and batches of them for inference.

Shapes: N sentences, L tokens in all, B batch, T tokens of the longest sentence of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

INFERENCE_BATCH = 256  # sentences; the fastest size measured for a student


@dataclass(frozen=True)
class Tokens:
    """Concatenated token ids of N sentences.

    Attributes:
        ids: (L,) int32.
        offsets: (N + 1,) int64; sentence i is `ids[offsets[i]:offsets[i + 1]]`.
        num_truncated: number of sentences cut to the maximum length.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_truncated: int = 0

    @classmethod
    def pack(cls, rows: Sequence[Sequence[int] | NDArray[np.int32]], num_truncated: int = 0) -> Tokens:
        """Concatenate lists of token ids."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids, offsets, num_truncated)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sentence, (N,)."""
        return np.diff(self.offsets)

    def part(self, start: int, stop: int) -> Tokens:
        """Return the sentences `start` to `stop` (exclusive)."""
        offsets = self.offsets[start : stop + 1]
        return Tokens(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])

    def sentence(self, i: int) -> NDArray[np.int32]:
        """Return the tokens of sentence `i`."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def padded(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (input_ids, attention_mask), both (B, T) int64, of the B sentences at `index`."""
        lengths = self.lengths[index]
        position = np.arange(lengths.max())[None, :]
        real = position < lengths[:, None]
        source = np.where(real, self.offsets[index][:, None] + position, 0)
        return np.where(real, self.ids[source], 0).astype(np.int64), real.astype(np.int64)


def plan_inference(
    lengths: NDArray[np.int64], batch_size: int, min_tokens: int | None = None
) -> list[NDArray[np.int64]]:
    """Return batches of sentence indices, sorted by length.

    Args:
        batch_size: maximum sentences of a batch.
        min_tokens: a batch with at least this many tokens, padding included, ends when the next sentence is
            longer. With four times as many it ends in any case. None: only `batch_size` limits a batch.
    """
    order = np.argsort(lengths, kind="stable")
    if min_tokens is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ordered = lengths[order].tolist()
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        size, longest = end - start, ordered[end - 1]
        is_full = size == batch_size or end == len(order) or size * longest >= 4 * min_tokens
        if is_full or (size * longest >= min_tokens and ordered[end] > longest):
            batches.append(order[start:end])
            start = end
    return batches
