"""Tables of grammatical features per sentence (Warstadt and Bowman 2019, arXiv:1901.03438).

The header names `Sentence`, optionally `Source`, `Domain` and `Acceptability`, and one 0/1 column per
feature. Rows are joined to a split by sentence text.

Shapes: R rows, F features, N sentences of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpora import Split
from colakit.data.corpus_files import file_opener
from colakit.data.tables import Row, RowErrors, read_rows, shown
from colakit.errors import ColakitError

SENTENCE, SOURCE, LABEL = "Sentence", "Source", "Acceptability"
DESCRIPTIVE = (SENTENCE, SOURCE, "Domain", LABEL)  # columns that are not features


@dataclass(frozen=True)
class Annotations:
    """Features of annotated sentences.

    Attributes:
        features: F names, in file order.
        values: (R, F) booleans.
        rows: sentence -> its row numbers.
        sources, labels: R texts; empty strings without such a column.
    """

    where: str
    features: tuple[str, ...]
    values: NDArray[np.bool_]
    rows: dict[str, list[int]]
    sources: tuple[str, ...]
    labels: tuple[str, ...]

    def join(self, split: Split) -> NDArray[np.int64]:
        """Return the row number of each sentence, (N,); -1 if it is not annotated.

        Among rows of equal text (a sentence with two readings), one of the same source and label is
        preferred, then the first.
        """
        joined = np.full(len(split), -1, dtype=np.int64)
        for number, sentence in enumerate(split.sentences):
            source = split.sources[number] if split.sources else ""
            label = "" if split.labels is None else str(split.labels[number])
            if rows := self.rows.get(sentence):
                alike = [(self.sources[row] == source, self.labels[row] == label) for row in rows]
                joined[number] = rows[alike.index(max(alike))]
        return joined

    def parts(self, joined: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return feature -> indices of the sentences that have it, given the result of `join`."""
        annotated = np.flatnonzero(joined >= 0)
        values = self.values[joined[annotated]]  # (annotated, F)
        return {name: annotated[values[:, column]] for column, name in enumerate(self.features)}


def read_annotations(path: Path) -> Annotations:
    """Read a TSV or CSV of annotated sentences.

    Raises:
        ColakitError: if the file is missing or malformed; names the line.
    """
    where = str(path)
    with file_opener(path, "Check the path of the annotations.")() as file:
        rows = list(read_rows(file, where))
    if len(rows) < 2:
        raise ColakitError(f"{where}: has no annotated sentence", hint="It needs a header and a row.")
    header, body = rows[0][1], rows[1:]
    if SENTENCE not in header:
        raise ColakitError(
            f"{where}:1: no column {SENTENCE!r} (has {', '.join(header)[:60]})",
            hint=f"The header names the columns: {SENTENCE}, and one for each feature.",
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ColakitError(f"{where}:1: two columns are called {twice[0]!r}", hint="Rename one of them.")
    features = tuple(name for name in header if name not in DESCRIPTIVE)
    if not features:
        hint = "Add a column of 0s and 1s for each feature."
        raise ColakitError(f"{where}:1: no column but {', '.join(header)}", hint=hint)
    columns = [header.index(name) for name in features]
    _check(body, header, columns, where)
    values = np.array([[fields[column] == "1" for column in columns] for _, fields in body], dtype=np.bool_)
    sentences: dict[str, list[int]] = {}
    for row, sentence in enumerate(_column(SENTENCE, header, body)):
        sentences.setdefault(sentence, []).append(row)
    sources, labels = _column(SOURCE, header, body), _column(LABEL, header, body)
    return Annotations(where, features, values, sentences, sources, labels)


def _check(body: list[Row], header: list[str], columns: list[int], where: str) -> None:
    """Raise `ColakitError` unless every row has the header's width and every feature is 0 or 1."""
    widths = RowErrors(where, f"every row must have {len(header)} columns")
    values = RowErrors(where, "a feature must be 0 or 1")
    for number, fields in body:
        if len(fields) != len(header):
            widths.add(number, f"{len(fields)} columns")
            continue
        for column in columns:
            if fields[column] not in ("0", "1"):
                values.add(number, f"{header[column]} is {shown(fields[column])}")
    widths.raise_any()
    values.raise_any()


def _column(name: str, header: list[str], body: list[Row]) -> tuple[str, ...]:
    return tuple(fields[header.index(name)] if name in header else "" for _, fields in body)
