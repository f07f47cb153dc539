"""Windows of running text that start at sentence starts; their order is a function of (seed, epoch).

Shapes: W windows, B batch, T predicted tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.data.batches import Batch
from colakit.data.running_text import Stream, Vocabulary

MOST_SKIPPED = 2  # windows of tokens that may be skipped to reach a sentence start


@dataclass(frozen=True)
class TextSource:
    """A text and its number of repeats per epoch."""

    stream: Stream
    repeats: int = 1


class Windows:
    """All windows of some sources.

    A window is the end-of-text token and the T tokens from a sentence start. Windows lie T tokens apart,
    with a random offset per repeat; each then moves to the next sentence start, if one is near.

    Args:
        facts: supplies the first token's form without its leading space.
        num_tokens: T.
    """

    def __init__(
        self, sources: Mapping[str, TextSource], facts: Vocabulary, num_tokens: int, end_of_text_id: int
    ) -> None:
        self.sources = dict(sources)
        self.facts = facts
        self.num_tokens = num_tokens
        self.end_of_text_id = end_of_text_id

    def __len__(self) -> int:
        """Return the number of windows of an epoch."""
        return sum(source.repeats * self._count(source.stream) for source in self.sources.values())

    def _count(self, stream: Stream) -> int:
        return max(1, (len(stream) - 1) // self.num_tokens)

    def plan(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's windows, shuffled: (W, 2), source index and start in its stream."""
        rng = np.random.default_rng([seed, epoch])
        rows = []
        for number, source in enumerate(self.sources.values()):
            for _ in range(source.repeats):
                starts = self._lay_out(source.stream, int(rng.integers(self.num_tokens)))
                rows.append(np.stack([np.full_like(starts, number), starts], axis=1))
        plan = np.concatenate(rows)
        rng.shuffle(plan)
        return plan

    def in_order(self, name: str, limit: int | None) -> NDArray[np.int64]:
        """Return up to `limit` evenly spaced windows of one source, for evaluation: (W, 2)."""
        number = list(self.sources).index(name)
        starts = np.unique(self._lay_out(self.sources[name].stream, 0))
        count = len(starts) if limit is None else min(limit, len(starts))
        spread = starts[np.linspace(0, len(starts) - 1, count).astype(np.int64)]
        return np.stack([np.full_like(spread, number), spread], axis=1)

    def _lay_out(self, stream: Stream, offset: int) -> NDArray[np.int64]:
        """Return a stream's window starts; `offset` is the first nominal one."""
        nominal = offset + self.num_tokens * np.arange(self._count(stream), dtype=np.int64)
        following = np.searchsorted(stream.starts, nominal)
        is_last = following == len(stream.starts)
        starts = stream.starts[np.where(is_last, 0, following)]  # wraps around after the last start
        whole = nominal <= len(stream) - self.num_tokens
        too_far = np.where(is_last, whole, starts > nominal + MOST_SKIPPED * self.num_tokens)
        return np.where(too_far, nominal, starts)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the windows `rows` (B, 2) as a batch, (B, T + 1), padded at the end of a stream."""
        size = self.num_tokens
        input_ids = np.full((len(rows), size + 1), self.end_of_text_id, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        mask[:, 0] = 1
        streams = [source.stream for source in self.sources.values()]
        for row, (number, start) in enumerate(rows):
            ids = streams[number].ids[start : start + size]
            input_ids[row, 1 : 1 + len(ids)] = ids
            bare = self.facts.bare[ids[0]]
            input_ids[row, 1] = bare if bare >= 0 else ids[0]
            mask[row, 1 : 1 + len(ids)] = 1
        return Batch(torch.from_numpy(input_ids), torch.from_numpy(mask))

    def count(self, rows: NDArray[np.int64]) -> int:
        """Return the number of tokens that the windows `rows` (B, 2) predict."""
        lengths = np.array([len(source.stream) for source in self.sources.values()], dtype=np.int64)
        return int(np.minimum(self.num_tokens, lengths[rows[:, 0]] - rows[:, 1]).sum())

    def measured(self, name: str, limit: int | None, size: int = 32) -> Iterator[tuple[Batch, int]]:
        """Yield up to `limit` windows of one source in batches, each with the bytes of its targets."""
        plan = self.in_order(name, limit)
        for start in range(0, len(plan), size):
            batch = self.batch(plan[start : start + size])
            yield batch, bytes_of(batch, self.facts)


def slices(
    stream: Stream, facts: Vocabulary, num_tokens: int, end_of_text_id: int, size: int = 32
) -> Iterator[tuple[Batch, int]]:
    """Yield all of a text in batches, (B, T + 1), each with the bytes of its targets.

    Every token is a target once; a row starts with the preceding token or end-of-text.
    """
    ids = np.concatenate([[end_of_text_id], stream.ids]).astype(np.int64)
    rows = np.arange(0, len(stream), num_tokens)[:, None] + np.arange(num_tokens + 1)  # (W, T + 1)
    for start in range(0, len(rows), size):
        index = rows[start : start + size]
        real = index < len(ids)
        input_ids = np.where(real, ids[np.minimum(index, len(ids) - 1)], end_of_text_id)
        batch = Batch(torch.from_numpy(input_ids), torch.from_numpy(real.astype(np.int64)))
        yield batch, bytes_of(batch, facts)


def bytes_of(batch: Batch, facts: Vocabulary) -> int:
    """Return the number of bytes of text in a batch's targets."""
    targets = batch.input_ids[:, 1:].numpy()
    return int((facts.num_bytes[targets] * batch.attention_mask[:, 1:].numpy()).sum())
