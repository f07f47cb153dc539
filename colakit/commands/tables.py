"""Tables that are printed and also written as Markdown."""

from __future__ import annotations

from colakit.engine.metrics import Interval

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def interval(found: Interval, factor: float, digits: int, *, signed: bool = False) -> str:
    """Write a figure times `factor` with its interval."""
    sign = "+" if signed else ""
    value, low, high = (f"{factor * x:{sign}.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def markdown(table: Table) -> str:
    """Return a table as Markdown, under its title."""
    title, columns, rows = table
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [columns, *rows]]
    return "\n".join([f"**{title}**", "", lines[0], "|" + "---|" * len(columns), *lines[1:], ""])
