"""Corpora of labelled sentences: named splits over one set of labels."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.columnar import HUB_PREFIX, open_hub
from colakit.data.corpus_files import file_opener, find_splits
from colakit.data.labelled_rows import Columns, LabelledRows, read_labelled, sort_labels
from colakit.data.tables import AS_PANDAS, Reading, Table, hub_table, open_table, table_format
from colakit.errors import ColakitError, did_you_mean

COLA_LABELS = ("unacceptable", "acceptable")
MAX_LABELS = 1000


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
            raise ColakitError(
                f"split {self.name!r} has no labels",
                hint="Name the column of labels with data.label_column, or use `colakit predict` on it.",
            )
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
        notes: what the user should know about the files.
    """

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()

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
        return replace(self, label_names=label_names, splits=splits)

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


def load_corpus(
    path: str | Path = "",
    *,
    files: Mapping[str, str | Path] | None = None,
    columns: Columns | None = None,
    label_names: Sequence[str] | None = None,
    reading: Reading = AS_PANDAS,
) -> Corpus:
    """Read a corpus from a zip, a folder, one table, or a dataset of the hub (`hf:NAME`).

    Args:
        files: split name -> table; replaces `path`.
        columns: None reads CoLA's or GLUE's layout.
        label_names: labels in index order; by default those of a dataset of the hub, or the sorted labels of
            train.

    Raises:
        ColakitError: if a file is missing, empty or malformed; names the file and line.
    """
    rows: dict[str, LabelledRows] = {}
    notes: list[str] = []
    names = tuple(label_names or ())
    with contextlib.closing(_open_tables(path, files, reading, columns)) as tables:
        for split, table, may_cut in tables:
            rows |= read_labelled(table, split, columns, may_cut=may_cut)
            notes += table.notes()
            if columns is not None:
                names = names or table.class_names.get(columns.label or "", ())
    name = ", ".join(map(str, files.values())) if files else str(path)
    if columns is None:
        index, rule, names = {"0": 0, "1": 1}, "the second column must be 0 or 1", COLA_LABELS
    else:
        for split, part in rows.items():
            notes += part.drop_unlabelled(split, names)
        names = names or _names_of(rows)
        index = {label: position for position, label in enumerate(names)}
        allowed = ", ".join(names)
        rule = f"labels must be among {allowed if len(allowed) <= 200 else allowed[:200] + '…'}"
    if len(names) > MAX_LABELS:
        raise ColakitError(
            f"{name}: {len(names):,} different labels; at most {MAX_LABELS:,} are allowed",
            hint="Check the label column: --set data.label_column=NAME",
        )
    splits = {
        split: Split(
            split, tuple(part.sentences), part.label_indices(index, rule), tuple(part.sources), part.kept
        )
        for split, part in rows.items()
    }
    return Corpus(name, names, splits, tuple(notes))


def _names_of(rows: Mapping[str, LabelledRows]) -> tuple[str, ...]:
    """Return the labels of train, or of all splits without one, sorted."""
    naming = [rows["train"]] if "train" in rows and rows["train"].labels else rows.values()
    return tuple(sort_labels({value for part in naming for value in part.labels or ()}))


def _open_tables(
    path: str | Path, files: Mapping[str, str | Path] | None, reading: Reading, columns: Columns | None
) -> Generator[tuple[str, Table, bool], None, None]:
    """Yield split, table, and whether a column may cut it; a table is closed before the next one."""
    text_column = None if columns is None else columns.text
    for split, source in (files or {"": path}).items():
        if str(source).startswith(HUB_PREFIX):
            parts = open_hub(str(source))
            if split and len(parts) > 1:
                raise ColakitError(
                    f"data.splits.{split}={source}: the dataset has the splits {', '.join(parts)}",
                    hint=f"Name one of them: {source}:{next(iter(parts))}",
                )
            for key, part in parts.items():
                yield split or key, hub_table(f"{source} ({key})", part), False
            continue
        file_path = Path(source).expanduser()
        matches = {split: (str(source), file_opener(file_path))} if split else find_splits(file_path)
        for key, (where, opener) in matches.items():
            kind = table_format(where) or "tsv"
            with opener() as file, open_table(file, where, kind, reading, text_column) as table:
                yield key, table, not split and len(matches) == 1
