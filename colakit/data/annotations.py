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
from colakit.data.delimited import read_rows, read_text, split_lines
from colakit.data.row_errors import RowErrors, shown
from colakit.errors import ColakitError

SENTENCE, SOURCE, LABEL = "Sentence", "Source", "Acceptability"
DESCRIPTIVE = (SENTENCE, SOURCE, "Domain", LABEL)  # columns that are not features
MAX_ROWS = 100_000

Key = tuple[str, str | None, str | None]  # sentence, and its source and label or None for any


@dataclass(frozen=True)
class Annotations:
    """Features of annotated sentences.

    Attributes:
        features: F names, in file order.
        values: (R, F) booleans.
        rows: key -> number of the first such row.
        sources, labels: R texts; empty strings without such a column.
    """

    where: str
    features: tuple[str, ...]
    values: NDArray[np.bool_]
    rows: dict[Key, int]
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
            joined[number] = next(
                (self.rows[key] for key in _keys(sentence, source, label) if key in self.rows), -1
            )
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
        is_csv = path.suffix.lower() == ".csv"
        lines = split_lines(read_text(file, where), where)
        rows = read_rows(lines, where, "," if is_csv else "\t", quoted=is_csv)
        header = next(rows, (1, []))[1]
        columns = _feature_columns(header, where) if header else {}
        widths = RowErrors(where, f"every row must have {len(header)} columns")
        errors = RowErrors(where, "a feature must be 0 or 1")
        values = bytearray()  # (R, F)
        texts: dict[str, list[str]] = {SENTENCE: [], SOURCE: [], LABEL: []}
        for number, fields in rows:
            if len(fields) != len(header):
                widths.add(number, f"{len(fields)} columns")
                continue
            for name, column in columns.items():
                if fields[column] not in ("0", "1"):
                    errors.add(number, f"{name} is {shown(fields[column])}")
            values += bytes(fields[column] == "1" for column in columns.values())
            for name, column_texts in texts.items():
                column_texts.append(fields[header.index(name)] if name in header else "")
            if len(texts[SENTENCE]) > MAX_ROWS:
                raise ColakitError(
                    f"{where}:{number}: more than {MAX_ROWS:,} sentences", hint="Annotate fewer."
                )
    widths.raise_any()
    errors.raise_any()
    sentences, sources, labels = map(tuple, texts.values())
    if not sentences:
        raise ColakitError(f"{where}: has no annotated sentence", hint="It needs a header and a row.")
    first: dict[Key, int] = {}
    for row, facts in enumerate(zip(sentences, sources, labels, strict=True)):
        for key in _keys(*facts):
            first.setdefault(key, row)
    marks = np.frombuffer(values, dtype=np.bool_).reshape(len(sentences), len(columns))
    return Annotations(where, tuple(columns), marks, first, sources, labels)


def _feature_columns(header: list[str], where: str) -> dict[str, int]:
    """Return feature -> index of its column."""
    if SENTENCE not in header:
        raise ColakitError(
            f"{where}:1: no column {SENTENCE!r} (has {', '.join(header)[:60]})",
            hint=f"The header names the columns: {SENTENCE}, and one for each feature.",
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ColakitError(f"{where}:1: two columns are called {twice[0]!r}", hint="Rename one of them.")
    features = {name: column for column, name in enumerate(header) if name not in DESCRIPTIVE}
    if not features:
        hint = "Add a column of 0s and 1s for each feature."
        raise ColakitError(f"{where}:1: no column but {', '.join(header)}", hint=hint)
    return features


def _keys(sentence: str, source: str, label: str) -> tuple[Key, ...]:
    """Return the keys of a row, the best match first."""
    return (
        (sentence, source, label),
        (sentence, source, None),
        (sentence, None, label),
        (sentence, None, None),
    )
