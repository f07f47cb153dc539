"""Tables of predictions: the rows that were read, with label and probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from colakit.data.table_writers import file_writer, text_writer
from colakit.data.tables import Format, Table, table_format, unique_names
from colakit.errors import ColakitError
from colakit.inference.decisions import Predictions
from colakit.utils.extras import import_extra
from colakit.utils.files import replacing

Rows = Sequence[Mapping[str, Any]]
WritePredictions = Callable[[Rows, Predictions], None]


@dataclass(frozen=True)
class PredictedTable:
    """The output for a table.

    A text gives the columns label, p(…), sentence. A table keeps its columns, followed by predicted and p(…);
    in JSON, the probabilities are one object by label. A name that the table has already gets `.1`.
    """

    table: Table
    kind: Format
    label_names: tuple[str, ...]

    @property
    def is_json(self) -> bool:
        """Whether probabilities are written as one object."""
        return self.kind in ("json", "jsonl")

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the columns of label and probabilities."""
        label = "label" if self.table.kind == "text" else "predicted"
        probs = ["probabilities"] if self.is_json else [f"p({name})" for name in self.label_names]
        return unique_names([*self.table.columns, label, *probs])[len(self.table.columns) :]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        if self.table.kind == "text" and not self.is_json:
            return (*self.added, *self.table.columns)
        return (*self.table.columns, *self.added)

    def rows(self, rows: Rows, predictions: Predictions) -> list[dict[str, Any]]:
        """Return the rows with their predictions."""
        result, added = [], self.added
        for row, prediction in zip(rows, named_predictions(predictions), strict=True):
            label, probs = prediction.values()
            values = [label, probs] if self.is_json else [label, *probs.values()]
            if not self.is_json and self.kind != "parquet":
                values[1:] = [f"{p:.6f}" for p in values[1:]]
            result.append({**row, **dict(zip(added, values, strict=True))})
        return result

    @property
    def schema(self) -> Any:
        """Arrow schema, if the table has one and Parquet is written."""
        if self.table.schema is None or self.kind != "parquet":
            return None
        arrow = import_extra("pyarrow", "data")
        label, *probs = self.added
        fields = [arrow.field(label, arrow.string()), *(arrow.field(p, arrow.float64()) for p in probs)]
        return arrow.schema([*self.table.schema, *fields])

    @contextlib.contextmanager
    def open(self, path: Path | None, stdout: TextIO) -> Iterator[WritePredictions]:
        """Yield a function that writes rows and their predictions to `path`, or to `stdout` without one."""
        same = self.kind == self.table.kind
        quoted = not (same and self.table.is_delimited and not self.table.quoted)
        delimiter = self.table.delimiter if same else "," if self.kind == "csv" else "\t"
        if path is None:
            with text_writer(stdout, self.kind, self.columns, delimiter, quoted=quoted) as write:
                yield lambda rows, predictions: write(self.rows(rows, predictions))
            return
        with (
            replacing(path) as temporary,
            file_writer(
                temporary,
                self.kind,
                self.columns,
                delimiter,
                quoted=quoted,
                ending=path.suffix,
                schema=self.schema,
            ) as write,
        ):
            yield lambda rows, predictions: write(self.rows(rows, predictions))


def named_predictions(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield label and probabilities of each sentence, by name."""
    for label, probs in zip(predictions.names, predictions.probs.tolist(), strict=True):
        by_name = dict(zip(predictions.label_names, (round(p, 6) for p in probs), strict=True))
        yield {"label": label, "probabilities": by_name}


def output_format(table: Table, output: Path | None, *, jsonl: bool) -> Format:
    """Return the format of the output: that of the file's name, or that of the input.

    Raises:
        ColakitError: if the name tells no format, or `jsonl` another one.
    """
    if output is None:
        return "jsonl" if jsonl or table.kind is None else "tsv" if table.kind == "text" else table.kind
    kind = table_format(output.name)
    if kind is None or (jsonl and kind != "jsonl"):
        raise ColakitError(
            f"--output {output}: {'--jsonl writes JSON lines' if kind else 'its name tells no format'}",
            hint="Let the name end in .tsv, .csv, .jsonl, .json or .parquet (or packed: .csv.gz).",
        )
    return kind
