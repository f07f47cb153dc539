"""Corpora of labelled sentences: CoLA, GLUE's CoLA, and tables with a header, from a zip, folder or files.

Splits: `train`, `id_dev` (in-domain) and `ood_dev` (out-of-domain) for CoLA; `train`, `dev` and `test` for
GLUE; `train` for a single file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.corpus_files import Opener, file_opener, find_splits
from colakit.data.tables import Row, RowErrors, column_index, read_rows, shown
from colakit.errors import ColakitError, did_you_mean

COLA_LABELS = ("unacceptable", "acceptable")
MAX_LABELS = 1000
MAX_LABEL = 200  # characters of a label


@dataclass(frozen=True)
class Split:
    """Sentences in file order.

    Attributes:
        labels: (N,) int64 indices into the corpus's label names; None if unlabelled.
        sources: N publication codes (CoLA's first column); empty if unknown.
        rows: (N,) indices in the split that this one was taken from; None for all of it.
    """

    name: str
    sentences: tuple[str, ...]
    labels: NDArray[np.int64] | None = None
    sources: tuple[str, ...] = ()
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.sentences)

    def take(self, index: NDArray[np.int64], name: str) -> Split:
        """Return the rows at `index` as a new split."""
        return Split(
            name,
            tuple(self.sentences[i] for i in index),
            None if self.labels is None else self.labels[index],
            tuple(self.sources[i] for i in index) if self.sources else (),
            index if self.rows is None else self.rows[index],
        )

    def require_labels(self) -> NDArray[np.int64]:
        """Return the labels; raise `ColakitError` if the split is unlabelled."""
        if self.labels is None:
            raise ColakitError(f"split {self.name!r} has no labels", hint="Use `colakit predict` on it.")
        return self.labels

    def sentences_sha256(self) -> str:
        """Return the SHA-256 of the sentences in UTF-8, one a line, without a last line ending."""
        return hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()

    def fingerprint(self) -> str:
        """Return a SHA-256 over sentences and labels."""
        digest = hashlib.sha256(json.dumps(self.sentences).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Named splits over one set of labels.

    Attributes:
        name: its path, for messages.
        label_names: C names; a label is an index into them.
    """

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Return a split; `dev` joins all splits whose names end in `_dev`."""
        if name in self.splits:
            return self.splits[name]
        if name == "dev" and (parts := [self.splits[key] for key in self.splits if key.endswith("_dev")]):
            return join_splits("dev", parts)
        raise ColakitError(
            f"{self.name}: no split {name!r}.{did_you_mean(name, self.splits)}",
            hint="Name a split with --split, or give the file with --set data.splits.NAME=FILE",
        )

    def relabelled(self, label_names: tuple[str, ...]) -> Corpus:
        """Return the corpus with labels renumbered by `label_names`, if these include all of its own."""
        if not set(self.label_names) <= set(label_names):
            return self
        new_index = np.array([label_names.index(name) for name in self.label_names], dtype=np.int64)
        splits = {
            name: replace(split, labels=None if split.labels is None else new_index[split.labels])
            for name, split in self.splits.items()
        }
        return Corpus(self.name, label_names, splits)

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every split."""
        return {name: split.fingerprint() for name, split in self.splits.items()}

    def report_splits(self) -> list[str]:
        """Return the labelled splits to report on: all but `train`, unless there is no other."""
        labelled = [name for name, split in self.splits.items() if split.labels is not None]
        return [name for name in labelled if name != "train"] or labelled


def join_splits(name: str, parts: Sequence[Split]) -> Split:
    """Concatenate labelled splits; sources are kept if every part has them."""
    known = all(len(part.sources) == len(part) for part in parts)
    return Split(
        name,
        tuple(sentence for part in parts for sentence in part.sentences),
        np.concatenate([part.require_labels() for part in parts]),
        tuple(source for part in parts for source in part.sources) if known else (),
    )


@dataclass(frozen=True)
class Columns:
    """Column names of a table with a header."""

    text: str
    label: str | None


def load_corpus(
    path: Path | None = None,
    *,
    files: Mapping[str, Path] | None = None,
    columns: Columns | None = None,
    label_names: Sequence[str] | None = None,
) -> Corpus:
    """Read a corpus from a zip, a folder or one file.

    Args:
        files: split name -> file; replaces `path`.
        columns: text and label columns; None reads CoLA's or GLUE's layout.
        label_names: labels in index order; by default the sorted labels of the files.

    Raises:
        ColakitError: if a file is missing, empty or malformed; names the file and line.
    """
    if files:
        contents = {name: (str(file), file_opener(Path(file))) for name, file in files.items()}
        name = ", ".join(str(file) for file in files.values())
    else:
        assert path is not None
        contents, name = find_splits(path), str(path)
    with contextlib.ExitStack() as files_in_use:  # closes every file, also after an error
        rows = {
            split: (where, files_in_use.enter_context(contextlib.closing(_rows(where, opened))))
            for split, (where, opened) in contents.items()
        }
        if columns is None:
            splits = {split: _cola_split(split, lines, where) for split, (where, lines) in rows.items()}
            return Corpus(name, COLA_LABELS, splits)
        return _table_corpus(name, rows, columns, label_names)


def _rows(where: str, opened: Opener) -> Generator[Row, None, None]:
    with opened() as file:
        yield from read_rows(file, where)


def _empty(where: str, problem: str = "has a header and no rows") -> ColakitError:
    return ColakitError(f"{where}: {problem}", hint="A split needs at least one sentence.")


@dataclass
class _Table:
    """Columns of one file: N sentences and line numbers, N labels and sources or none of them."""

    where: str
    sentences: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str] | None = None
    sources: list[str] = field(default_factory=list)

    def split(self, name: str, index: Mapping[str, int], rule: str) -> Split:
        """Return the table as a split with label indices; raise by `rule` if a label is not in `index`."""
        labels = None
        if self.labels is not None:
            errors = RowErrors(self.where, rule)
            for number, value in zip(self.lines, self.labels, strict=True):
                if value not in index:
                    errors.add(number, f"label {shown(value)}")
            errors.raise_any()
            labels = np.fromiter((index[value] for value in self.labels), np.int64, len(self.labels))
        return Split(name, tuple(self.sentences), labels, tuple(self.sources))


def _read_table(
    rows: Iterable[Row], where: str, width: int, text: int, label: int | None, source: int | None = None
) -> _Table:
    """Read the columns number `text`, `label` and `source` of rows that must have `width` columns."""
    table = _Table(where, labels=None if label is None else [])
    widths = RowErrors(where, f"every row must have {width} columns")
    strings: dict[str, str] = {}  # shares one string per distinct label or source
    for number, fields in rows:
        if len(fields) != width:
            widths.add(number, f"{len(fields)} columns")
            continue
        table.sentences.append(fields[text])
        table.lines.append(number)
        if label is not None and table.labels is not None:
            table.labels.append(strings.setdefault(fields[label], fields[label]))
        if source is not None:
            table.sources.append(strings.setdefault(fields[source], fields[source]))
    widths.raise_any()
    if not table.sentences:
        raise _empty(where)
    return table


def _cola_split(name: str, rows: Iterator[Row], where: str) -> Split:
    """Read CoLA's columns (source, label, author's mark, sentence) or GLUE's test set (index, sentence)."""
    first = next(rows, None)
    if first is None:
        raise _empty(where, "is empty")
    if first[1] == ["index", "sentence"]:
        return _read_table(rows, where, 2, text=1, label=None).split(name, {}, "")
    if len(first[1]) != 4:
        raise ColakitError(
            f"{where}:1: {len(first[1])} columns ({' | '.join(first[1])[:60]}); CoLA has 4, no header",
            hint="For a table of your own name its columns: "
            "--set data.text_column=NAME --set data.label_column=NAME",
        )
    table = _read_table(itertools.chain([first], rows), where, 4, text=3, label=1, source=0)
    return table.split(name, {"0": 0, "1": 1}, "the second column must be 0 or 1")


def _table_corpus(
    name: str,
    rows: Mapping[str, tuple[str, Iterator[Row]]],
    columns: Columns,
    label_names: Sequence[str] | None,
) -> Corpus:
    """Read tables with a header; train's labels are sorted, numerically if all are numbers."""
    tables = {split: _headed_table(split, lines, where, columns) for split, (where, lines) in rows.items()}
    labelled = {split: table.labels for split, table in tables.items() if table.labels is not None}
    naming = [labelled["train"]] if "train" in labelled else labelled.values()
    names = tuple(label_names or _sorted_labels({value for part in naming for value in part}))
    if len(names) > MAX_LABELS:
        raise ColakitError(
            f"{name}: {len(names):,} different labels; at most {MAX_LABELS:,} are allowed",
            hint="Check the label column: --set data.label_column=NAME",
        )
    index = {label: position for position, label in enumerate(names)}
    allowed = ", ".join(names)
    rule = f"labels must be among {allowed if len(allowed) <= 200 else allowed[:200] + '…'}"
    return Corpus(name, names, {split: table.split(split, index, rule) for split, table in tables.items()})


def _headed_table(split: str, rows: Iterator[Row], where: str, columns: Columns) -> _Table:
    first = next(rows, None)
    if first is None:
        raise _empty(where, "is empty")
    header = first[1]
    text = column_index(header, columns.text, "data.text_column", where)
    label = None
    if columns.label is not None and (columns.label in header or split == "train"):
        label = column_index(header, columns.label, "data.label_column", where)
    table = _read_table(rows, where, len(header), text, label)
    errors = RowErrors(
        where, f"a label is needed, of up to {MAX_LABEL} characters without tabs and line ends"
    )
    for number, value in zip(table.lines, table.labels or (), strict=False):
        if not value.strip() or len(value) > MAX_LABEL or not {"\t", "\n", "\r"}.isdisjoint(value):
            errors.add(number, f"label {shown(value)}" if value.strip() else "no label")
    errors.raise_any()
    return table


def _sorted_labels(values: set[str]) -> list[str]:
    try:
        return sorted(sorted(values), key=float)  # the inner sort orders `1` and `1.0`
    except ValueError:
        return sorted(values)
