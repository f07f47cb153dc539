"""Texts and labels of the rows of a table."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colakit.data.row_errors import RowErrors, shown
from colakit.data.tables import Table, cell_text, empty_file
from colakit.errors import ColakitError

MAX_LABEL = 200  # characters of a label
MAX_SPLITS = 20  # values of a split column
USUAL_COLUMNS = {  # named in a hint
    "text_column": ("sentence", "text"),
    "label_column": ("label", "labels", "acceptability", "class", "category"),
}
MISSING = {  # what pandas reads as a missing value, and the label -1 of an unlabelled row
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-1", "-1.0"),
}


class Columns(NamedTuple):
    """Names of columns.

    Attributes:
        split: column that cuts a single table into splits, if the table has it.
    """

    text: str
    label: str | None
    split: str | None = None


@dataclass
class LabelledRows:
    """Rows of one split.

    Attributes:
        sentences, numbers: N texts and their numbers in the file.
        labels: N texts; None if the split is unlabelled.
        sources: N publication codes of CoLA, or none.
        kept: indices of these rows in the file's split, if rows without a label were dropped.
    """

    where: str
    unit: str
    sentences: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str] | None = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    kept: NDArray[np.int64] | None = None

    def errors(self, rule: str, hint: str = "Fix these lines.") -> RowErrors:
        """Return an empty list of errors of these rows."""
        return RowErrors(self.where, rule, hint, self.unit)

    def drop_unlabelled(self, split: str, classes: Collection[str]) -> list[str]:
        """Check the labels and drop rows without one, which train must not have; return notes.

        Without any label, the split becomes unlabelled.

        Args:
            classes: labels that are classes although they look like missing values.
        """
        if self.labels is None:
            return []
        allowed = {value: value in classes or value.strip() not in MISSING for value in set(self.labels)}
        if not any(allowed.values()):
            self.labels = None
            return [f"{split}: its {len(self.sentences):,} rows have no label"]
        hint = "Remove these rows."
        if words := ", ".join(repr(value) for value in allowed if value.strip() and not allowed[value]):
            names = ",".join(sort_labels({value for value in allowed if value.strip()}))
            hint += f" If {words} is a class, list all classes: --set data.label_names={names[:200]}"
        rule = f"a label is needed, of up to {MAX_LABEL} characters without tabs and line ends"
        errors = self.errors(rule, hint)
        for number, value in zip(self.numbers, self.labels, strict=True):
            is_odd = len(value) > MAX_LABEL or not {"\t", "\n", "\r"}.isdisjoint(value)
            if is_odd or (split == "train" and not allowed[value]):
                errors.add(number, f"label {shown(value)}" if value.strip() else "no label")
        errors.raise_any()
        if all(allowed.values()):
            return []
        num_rows = len(self.sentences)
        self.kept = np.flatnonzero([allowed[value] for value in self.labels])
        self.sentences = [self.sentences[i] for i in self.kept]
        self.labels = [self.labels[i] for i in self.kept]
        self.numbers = array("q", (self.numbers[i] for i in self.kept))
        return [f"{split}: {num_rows - len(self.kept):,} of {num_rows:,} rows have no label and are left out"]

    def label_indices(self, index: Mapping[str, int], rule: str) -> NDArray[np.int64] | None:
        """Return the labels as indices; raise `ColakitError` with `rule` if one is not in `index`."""
        if self.labels is None:
            return None
        errors = self.errors(rule)
        for number, value in zip(self.numbers, self.labels, strict=True):
            if value not in index:
                errors.add(number, f"label {shown(value)}")
        errors.raise_any()
        return np.fromiter((index[value] for value in self.labels), np.int64, len(self.labels))


def read_labelled(
    table: Table, split: str, columns: Columns | None, *, may_cut: bool
) -> dict[str, LabelledRows]:
    """Return split -> rows of a table: all of them as `split`, unless a column cuts the table.

    Args:
        columns: None if the table must have the layout of CoLA or of GLUE's and Kaggle's test set.
        may_cut: whether `columns.split` may cut the table.

    Raises:
        ColakitError: if a column is missing, there are no rows, or a row is malformed.
    """
    text, label, source, cut = _columns_of(table, split, columns, may_cut=may_cut)
    parts = defaultdict[str, LabelledRows](
        lambda: LabelledRows(table.where, table.unit, labels=None if label is None else [])
    )
    errors = table.errors("every row must have a text" + (f" and a {cut}" if cut else ""))
    strings: dict[str, str] = {}  # shares one string per distinct label, source and split

    def cell(row: Mapping[str, Any], name: str) -> str:
        value = cell_text(row.get(name))
        return strings.setdefault(value, value)

    for number, row in table.rows:
        try:
            sentence = table.text(row, text)
            part = parts[split if cut is None else _split_name(cell(row, cut))]
            if part.labels is not None and label is not None:
                part.labels.append(cell(row, label))
            if source is not None:
                part.sources.append(cell(row, source))
        except ValueError as error:
            errors.add(number, str(error))
            continue
        part.sentences.append(sentence)
        part.numbers.append(number)
        if len(parts) > MAX_SPLITS:
            raise ColakitError(
                f"{table.where}: the column {cut!r} has more than {MAX_SPLITS} values, so it names no splits",
                hint="Name another column, or none: --set data.split_column=null",
            )
    errors.raise_any()
    if not parts:
        raise empty_file(table.where, "has a header and no rows")
    return dict(parts)


def _columns_of(
    table: Table, split: str, columns: Columns | None, *, may_cut: bool
) -> tuple[str, str | None, str | None, str | None]:
    """Return the columns of text, label, source and split, the last three None if there is none."""
    if columns is None:
        _require_layout(table)
        has_label = table.layout == "cola"
        return table.columns[-1], "label" if has_label else None, "source" if has_label else None, None
    text = table.require(columns.text, "data.text_column")
    label = columns.label
    if label is not None and split == "train":
        table.require(label, "data.label_column")
    if label not in table.columns:
        label = None
    return text, label, None, columns.split if may_cut and columns.split in table.columns else None


def _split_name(value: str) -> str:
    if not value.strip():
        raise ValueError("no name of a split")
    return value.strip()


def _require_layout(table: Table) -> None:
    """Raise `ColakitError` unless the table has a layout whose columns are known."""
    if table.layout != "named":
        return
    shown_columns = " | ".join(table.columns)[:60]
    names = {
        setting: next((name for name in table.columns if name.lower() in usual), "NAME")
        for setting, usual in USUAL_COLUMNS.items()
    }
    raise ColakitError(
        f"{table.where}:1: {len(table.columns)} columns ({shown_columns}); "
        "CoLA has 4, without a header, and 0 or 1 in the second",
        hint="For a table with a header name its columns: "
        + " ".join(f"--set data.{setting}={name}" for setting, name in names.items()),
    )


def sort_labels(labels: set[str]) -> list[str]:
    """Return labels in order, as numbers if all are."""
    try:
        return sorted(sorted(labels), key=float)  # the inner sort orders `1` and `1.0`
    except ValueError:
        return sorted(labels)
