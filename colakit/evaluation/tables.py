"""Tables that are printed and also written as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colakit.api.session import Session
from colakit.evaluation.metrics import Interval, Spread
from colakit.utils.files import write_json, write_text

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def interval(found: Interval, factor: float, digits: int, *, signed: bool = False) -> str:
    """Write a figure times `factor` with its interval."""
    sign = "+" if signed else ""
    value, low, high = (f"{factor * x:{sign}.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def spread(found: Spread, factor: float, digits: int) -> str:
    """Write a mean times `factor` with its standard deviation, where there is one."""
    parts = [found.mean] if found.sd is None else [found.mean, found.sd]
    rounded = [round(factor * part, digits) + 0.0 for part in parts]  # + 0.0: no minus before 0
    return " ± ".join(f"{part:.{digits}f}" for part in rounded)


def markdown(table: Table) -> str:
    """Return a table as Markdown, under its title."""
    title, columns, rows = table
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [columns, *rows]]
    return "\n".join([f"**{title}**", "", lines[0], "|" + "---|" * len(columns), *lines[1:], ""])


def show(session: Session, tables: Sequence[Table]) -> None:
    """Print the tables."""
    for title, columns, rows in tables:
        session.reporter.table(title, columns, rows)


def keep(session: Session, name: str, answer: Mapping[str, Any], tables: Sequence[Table]) -> None:
    """With `--out`, write the answer to NAME.json and the tables to NAME.md there."""
    if session.out is None:
        return
    session.out.mkdir(parents=True, exist_ok=True)
    write_json(session.out / f"{name}.json", answer)
    write_text(session.out / f"{name}.md", "\n".join(markdown(table) for table in tables))
    session.reporter.say(f"written to {session.out}")
