"""Layout of tables in which no word, number or interval is broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

FRAME = 3  # characters of a column beside its text: a border and two spaces
WORD = re.compile(r"\[[^\]\n]*\]|\S+")  # an interval `[low, high]` counts as a word


def fit_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, measure: Callable[[str], int] = len
) -> tuple[list[list[str]], list[int]] | None:
    """Return the lines of the table, its header first, and the width of each column; None if it cannot fit.

    A table that is too wide is folded between words. If that is not enough, its columns become rows.

    Args:
        width: of the terminal, in characters.
        measure: returns the width of a text.
    """
    table = [list(columns), *map(list, rows)]
    for lines in (table, [list(line) for line in zip(*table, strict=True)]):
        if (widths := _column_widths(lines, width, measure)) is not None:
            folded = ([_fold(*cell, measure) for cell in zip(line, widths, strict=True)] for line in lines)
            return list(folded), widths
    return None


def _column_widths(
    lines: Sequence[Sequence[str]], width: int, measure: Callable[[str], int]
) -> list[int] | None:
    """Return the width of each column, at least that of its longest word; None if the table is too wide."""
    columns = list(zip(*lines, strict=True))
    widths = [max(map(measure, cells)) for cells in columns]
    least = [
        max((measure(word) for cell in cells for word in WORD.findall(cell)), default=0) for cells in columns
    ]
    for _ in range(sum(widths) + FRAME * len(widths) + 1 - width):
        can_shrink = [index for index in range(len(widths)) if widths[index] > least[index]]
        if not can_shrink:
            return None
        widths[max(can_shrink, key=widths.__getitem__)] -= 1
    return widths


def _fold(cell: str, width: int, measure: Callable[[str], int]) -> str:
    """Break a cell that is wider than its column into lines, between words."""
    if measure(cell) <= width:
        return cell
    lines: list[str] = []
    for word in WORD.findall(cell):
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
