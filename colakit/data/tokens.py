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
    """Token numbers of N sentences, one after another.

    Attributes:
        ids: (L,) int32.
        offsets: (N + 1,) int64; sentence i is `ids[offsets[i]:offsets[i + 1]]`.
        num_truncated: sentences that were cut to the longest allowed length.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_truncated: int = 0

    @classmethod
    def pack(cls, rows: Sequence[Sequence[int] | NDArray[np.int32]], num_truncated: int = 0) -> Tokens:
        """Return the sentences whose token numbers are `rows`."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids, offsets, num_truncated)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence, (N,)."""
        return np.diff(self.offsets)

    def part(self, start: int, stop: int) -> Tokens:
        """Return sentences `start` to `stop`, the latter left out."""
        offsets = self.offsets[start : stop + 1]
        return Tokens(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])

    def sentence(self, i: int) -> NDArray[np.int32]:
        """Return the tokens of sentence `i`."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def padded(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (input_ids, attention_mask), both (B, T), of the B sentences at `index`."""
        lengths = self.lengths[index]
        position = np.arange(lengths.max())[None, :]
        real = position < lengths[:, None]
        source = np.where(real, self.offsets[index][:, None] + position, 0)
        return np.where(real, self.ids[source], 0).astype(np.int64), real.astype(np.int64)


def plan_inference(
    lengths: NDArray[np.int64], batch_size: int, enough: int | None = None
) -> list[NDArray[np.int64]]:
    """Return batches of sentence numbers in order of length, for evaluation.

    Args:
        batch_size: sentences in a batch, at most.
        enough: tokens, padding included, from which a batch ends rather than be padded for a longer sentence;
            with four times as many it ends anyway.
    """
    order = np.argsort(lengths, kind="stable")
    if enough is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    ordered = lengths[order].tolist()
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        size, longest = end - start, ordered[end - 1]
        ends = size == batch_size or end == len(order) or size * longest >= 4 * enough
        if ends or (size * longest >= enough and ordered[end] > longest):
            batches.append(order[start:end])
            start = end
    return batches
