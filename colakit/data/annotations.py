"""Sentences marked with grammatical features, such as Warstadt and Bowman's (2019, arXiv:1901.03438).

A table with a header: `Sentence`, perhaps `Source`, `Domain` and `Acceptability`, and a column of 0s and 1s
for each feature. Rows are joined to a split by the text of the sentence.

Shapes: R rows, F features, N sentences of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.data.tables import Row, RowErrors, read_rows, shown
from colakit.errors import ColakitError

SENTENCE, SOURCE, LABEL = "Sentence", "Source", "Acceptability"
DESCRIPTIVE = (SENTENCE, SOURCE, "Domain", LABEL)  # the columns that are no features


@dataclass(frozen=True)
class Annotations:
    """Which sentence has which feature.

    Attributes:
        where: the file.
        features: F names, in the file's order.
        values: (R, F) booleans.
        rows: sentence -> the numbers of its rows.
        sources, labels: R texts, empty where there is no such column.
    """

    where: str
    features: tuple[str, ...]
    values: NDArray[np.bool_]
    rows: dict[str, list[int]]
    sources: tuple[str, ...]
    labels: tuple[str, ...]

    def join(self, split: Split) -> NDArray[np.int64]:
        """Return for each of N sentences the row with exactly its text, or -1.

        Of several such rows, as for a sentence with two readings, one with the sentence's source and label is
        preferred, and then the first.
        """
        found = np.full(len(split), -1, dtype=np.int64)
        for number, sentence in enumerate(split.sentences):
            source = split.sources[number] if split.sources else ""
            label = "" if split.labels is None else str(split.labels[number])
            if rows := self.rows.get(sentence):
                alike = [(self.sources[row] == source, self.labels[row] == label) for row in rows]
                found[number] = rows[alike.index(max(alike))]
        return found

    def parts(self, joined: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return feature -> the numbers of the sentences that have it, from what `join` returned."""
        annotated = np.flatnonzero(joined >= 0)
        values = self.values[joined[annotated]]  # (annotated, F)
        return {name: annotated[values[:, place]] for place, name in enumerate(self.features)}


def read_annotations(path: Path) -> Annotations:
    """Read a TSV or CSV of annotated sentences.

    Raises:
        ColakitError: if it is missing or malformed, naming the line.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            rows = list(read_rows(file, where))
    except OSError as error:
        raise ColakitError(f"{where}: {error.strerror}", hint="Check the path of the annotations.") from error
    if len(rows) < 2:
        raise ColakitError(f"{where}: holds no annotated sentence", hint="A header and a row are the least.")
    header, body = rows[0][1], rows[1:]
    features = _features(header, where)
    places = [header.index(name) for name in features]
    _check(body, header, places, where)
    values = np.array([[fields[place] == "1" for place in places] for _, fields in body], dtype=np.bool_)
    sentences: dict[str, list[int]] = {}
    for row, sentence in enumerate(_column(SENTENCE, header, body)):
        sentences.setdefault(sentence, []).append(row)
    sources, labels = _column(SOURCE, header, body), _column(LABEL, header, body)
    return Annotations(where, features, values, sentences, sources, labels)


def _check(body: list[Row], header: list[str], places: list[int], where: str) -> None:
    """Raise `ColakitError` unless every row is as wide as the header, and every feature 0 or 1."""
    widths = RowErrors(where, f"every row must have {len(header)} columns")
    values = RowErrors(where, "a feature must be 0 or 1")
    for number, fields in body:
        if len(fields) != len(header):
            widths.add(number, f"{len(fields)} columns")
            continue
        for place in places:
            if fields[place] not in ("0", "1"):
                values.add(number, f"{header[place]} is {shown(fields[place])}")
    widths.raise_any()
    values.raise_any()


def _features(header: list[str], where: str) -> tuple[str, ...]:
    if SENTENCE not in header:
        raise ColakitError(
            f"{where}:1: no column {SENTENCE!r} (has {', '.join(header)[:60]})",
            hint=f"The header names the columns: {SENTENCE}, and one for each feature.",
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ColakitError(f"{where}:1: two columns are called {twice[0]!r}", hint="Rename one of them.")
    features = tuple(name for name in header if name not in DESCRIPTIVE)
    if not features:
        raise ColakitError(
            f"{where}:1: no column but {', '.join(header)}",
            hint="Add a column of 0s and 1s for each feature.",
        )
    return features


def _column(name: str, header: list[str], body: list[Row]) -> tuple[str, ...]:
    return tuple(fields[header.index(name)] if name in header else "" for _, fields in body)
