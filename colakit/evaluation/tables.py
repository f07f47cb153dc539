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

METRICS = ("accuracy", "majority_rate", "mcc")
COLUMNS = ("sentences", "accuracy %", "majority %", "MCC")
STYLES = ((100, 2), (100, 2), (1, 3))  # factor and digits of each of METRICS


def percent(value: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{100 * value:.2f}"


def format_interval(interval: Interval, factor: float, digits: int, *, signed: bool = False) -> str:
    """Format a value times `factor` with its interval: `value [low, high]`.

    An interval without a width is undefined (`value [-]`): a bootstrap's if all predictions are right.
    """
    sign = "+" if signed else ""
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (f"{factor * x:{sign}.{digits}f}" for x in ends)
    return f"{value} [{low}, {high}]" if interval.low < interval.high else f"{value} [-]"


def format_spread(spread: Spread, factor: float, digits: int) -> str:
    """Format a mean times `factor` with its standard deviation, if any: `mean ± sd`."""
    parts = [spread.mean] if spread.sd is None else [spread.mean, spread.sd]
    rounded = [round(factor * part, digits) + 0.0 for part in parts]  # + 0.0 turns -0 into 0
    return " ± ".join(f"{part:.{digits}f}" for part in rounded)


def metrics_row(name: str, metrics: Metrics) -> list[str]:
    """Return a table row: name, sentences, accuracy, majority rate, MCC, loss."""
    return [
        name,
        f"{metrics.num_examples:,}",
        percent(metrics.accuracy),
        percent(metrics.majority_rate),
        f"{metrics.mcc:.3f}",
        f"{metrics.loss:.3f}",
    ]


def spreads(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation of each of METRICS over runs."""
    return {key: vars(Spread.of([run[key] for run in runs])) for key in METRICS}


def spread_table(
    title: str,
    column: str,
    runs: Mapping[str, Mapping[str, Any]],
    spread: Mapping[str, Mapping[str, Any]],
) -> Table:
    """Return a table of METRICS: a row for each run, and mean ± sd.

    Args:
        column: title of the first column, which holds the keys of `runs`.
        spread: as returned by `spreads`.
    """
    rows = [
        [
            name,
            f"{run['num_examples']:,}",
            percent(run["accuracy"]),
            percent(run["majority_rate"]),
            f"{run['mcc']:.3f}",
        ]
        for name, run in runs.items()
    ]
    own = [Spread(**spread[key]) for key in METRICS]
    if own[1].sd == 0:  # the majority rate differs between folds only
        own[1] = Spread(own[1].mean, None)
    means = [format_spread(each, *style) for each, style in zip(own, STYLES, strict=True)]
    return title, [column, *COLUMNS], [*rows, ["mean ± sd", "", *means]]


def print_tables(tables: Sequence[Table], reporter: Reporter) -> None:
    """Print tables to the console."""
    for title, columns, rows in tables:
        reporter.table(title, columns, rows)


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, with its title above."""
    title, columns, rows = table
    return "\n".join([f"**{escape_markdown(title)}**", "", *markdown_rows(columns, rows), ""])


def markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    head, *body = [f"| {' | '.join(map(escape_markdown, row))} |" for row in [columns, *rows]]
    return [head, "|" + "---|" * len(columns), *body]


def write_results(
    out: Path | None, name: str, results: Mapping[str, Any], tables: Sequence[Table], reporter: Reporter
) -> None:
    """Write the results to OUT/NAME.json and the tables to OUT/NAME.md; nothing if `out` is None."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", results)
    write_text(out / f"{name}.md", "\n".join(map(markdown_table, tables)))
    reporter.say(f"written to {out}")
