"""Rows that hold every pair of values of several factors (pairwise testing)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

Value = tuple[str, str]  # factor, value
Pair = tuple[Value, Value]  # in sorted order


def pairwise(factors: Mapping[str, Iterable[str]], excluded: Collection[Pair] = ()) -> list[dict[str, str]]:
    """Return rows with a value for each factor, so that every pair of values is in a row.

    Greedy: a row starts from a missing pair, and each further value is the one that adds most missing pairs.

    Args:
        excluded: pairs that no row holds.
    """
    values = [(factor, value) for factor, names in factors.items() for value in names]
    missing = {ordered(a, b) for a, b in combinations(values, 2) if a[0] != b[0]} - set(excluded)
    rows = []
    while missing:
        row = list(min(missing))
        for factor in [name for name in factors if name not in dict(row)]:
            allowed = [
                value
                for value in values
                if value[0] == factor and not any(ordered(value, other) in excluded for other in row)
            ]
            row.append(max(allowed, key=lambda value: sum(ordered(value, other) in missing for other in row)))
        missing -= {ordered(a, b) for a, b in combinations(row, 2)}
        rows.append({factor: dict(row)[factor] for factor in factors})
    return rows


def ordered(a: Value, b: Value) -> Pair:
    return (a, b) if a < b else (b, a)
