"""Errors of the rows of a file, reported together."""

from __future__ import annotations

from colakit.errors import ColakitError

MAX_SHOWN = 5
MAX_ERRORS = 1000  # invalid rows of a file after which reading stops
MAX_CELL_SHOWN = 40  # characters of a cell in an error


class RowErrors:
    """Invalid lines of one file: up to `MAX_ERRORS` are counted, the first `MAX_SHOWN` are reported.

    Args:
        where: the file.
        rule: the rule that every line must follow.
        hint: how to follow it.
        unit: what the numbers count.
    """

    def __init__(self, where: str, rule: str, hint: str = "Fix these lines.", unit: str = "line") -> None:
        self.where, self.rule, self.hint, self.unit = where, rule, hint, unit
        self.shown: list[tuple[int, str]] = []
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        """Record an invalid row; raise `ColakitError` after `MAX_ERRORS` of them."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append((line, problem))
        if self.count == MAX_ERRORS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise one `ColakitError` for all invalid lines, if there are any."""
        if not self.count:
            return
        shown = "; ".join(f"{self.unit} {number}: {problem}" for number, problem in self.shown)
        more = f"; and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        lines = self.unit if self.count == 1 else f"{self.unit}s"
        count = f"{self.count}{' or more' if self.count == MAX_ERRORS else ''}"
        raise ColakitError(
            f"{self.where}:{self.shown[0][0]}: {self.rule} ({count} invalid {lines}: {shown}{more})",
            hint=self.hint,
        )


def shown(cell: str) -> str:
    """Return a cell quoted and shortened for an error message."""
    return repr(cell if len(cell) <= MAX_CELL_SHOWN else cell[:MAX_CELL_SHOWN] + "…")
