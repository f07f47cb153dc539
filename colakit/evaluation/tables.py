"""Tables of results: formatting of cells, printing, and Markdown files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colakit.evaluation.metrics import Interval, Metrics, Spread
from colakit.utils.console import Reporter
from colakit.utils.files import write_json, write_text
from colakit.utils.text import escape_markdown

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def percent(value: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{100 * value:.2f}"


def format_interval(interval: Interval, factor: float, digits: int, *, signed: bool = False) -> str:
    """Format a value times `factor` with its interval: `value [low, high]`."""
    sign = "+" if signed else ""
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (f"{factor * x:{sign}.{digits}f}" for x in ends)
    return f"{value} [{low}, {high}]"


def format_spread(spread: Spread, factor: float, digits: int) -> str:
    """Format a mean times `factor` with its standard deviation, if any: `mean ± sd`."""
    parts = [spread.mean] if spread.sd is None else [spread.mean, spread.sd]
    rounded = [round(factor * part, digits) + 0.0 for part in parts]  # + 0.0 turns -0 into 0
    return " ± ".join(f"{part:.{digits}f}" for part in rounded)


def metrics_row(name: str, metrics: Metrics) -> list[str]:
    """Return a table row: name, sentences, accuracy, majority rate, MCC, loss."""
    return [
        name,
        str(metrics.num_examples),
        percent(metrics.accuracy),
        percent(metrics.majority_rate),
        f"{metrics.mcc:.3f}",
        f"{metrics.loss:.3f}",
    ]


def print_tables(tables: Sequence[Table], reporter: Reporter) -> None:
    """Print tables to the console."""
    for title, columns, rows in tables:
        reporter.table(title, columns, rows)


def write_results(
    out: Path | None, name: str, results: Mapping[str, Any], tables: Sequence[Table], reporter: Reporter
) -> None:
    """Write the results to OUT/NAME.json and the tables to OUT/NAME.md; nothing if `out` is None."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", results)
    lines = []
    for title, columns, rows in tables:
        head, *body = [f"| {' | '.join(map(escape_markdown, row))} |" for row in [columns, *rows]]
        lines += [f"**{escape_markdown(title)}**", "", head, "|" + "---|" * len(columns), *body, ""]
    write_text(out / f"{name}.md", "\n".join(lines))
    reporter.say(f"written to {out}")
