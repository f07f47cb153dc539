"""The rows that each block computes for a batch of (adapter, sentence) pairs.

A row of a block is a sentence as one adapter computes it, or, below the first block that the adapter changes,
as the base computes it for all such adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASE = -1

Row = tuple[int, int]
"""Adapter (`BASE`: none), sentence."""


@dataclass(frozen=True)
class Stage:
    """Rows of the blocks from `block` on, up to the next stage.

    Attributes:
        rows: sorted, so that the rows of an adapter are neighbours.
        sources: index of the previous stage's row that each row continues; empty in the first stage.
    """

    block: int
    rows: tuple[Row, ...]
    sources: tuple[int, ...]

    def groups(self) -> list[tuple[int, int, int]]:
        """Return (adapter, first row, row after the last) of the rows of each adapter and of the base."""
        groups: list[tuple[int, int, int]] = []
        for index, (adapter, _) in enumerate(self.rows):
            if groups and groups[-1][0] == adapter:
                groups[-1] = (adapter, groups[-1][1], index + 1)
            else:
                groups.append((adapter, index, index + 1))
        return groups


def plan_stages(pairs: Sequence[Row], first_blocks: Sequence[int], num_blocks: int) -> list[Stage]:
    """Return the stages of a batch. The last one, at `num_blocks`, has one row for each distinct pair.

    Args:
        pairs: (adapter, sentence), both numbered from 0.
        first_blocks: lowest block that each adapter changes.
    """
    used = {first_blocks[adapter] for adapter, _ in pairs}
    stages: list[Stage] = []
    before: dict[Row, int] = {}
    for block in sorted({0, num_blocks} | used):
        final = block == num_blocks
        rows = sorted({(a if final or first_blocks[a] <= block else BASE, s) for a, s in pairs})
        sources = (before.get(row, before.get((BASE, row[1]), 0)) for row in rows)
        stages.append(Stage(block, tuple(rows), tuple(sources) if stages else ()))
        before = {row: index for index, row in enumerate(rows)}
    return stages
