"""MCC on slices of a split: by source (CoLA's first column) or by annotated grammatical phenomenon.

Shapes: N sentences of the split, n of a slice.

Slices may overlap. Their 95 % intervals are not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.config.usage import EvaluateSettings
from colakit.data.annotations import Annotations, read_annotations
from colakit.data.corpora import Corpus, Split
from colakit.errors import ColakitError, did_you_mean
from colakit.evaluation.comparison import ModelPredictions, group_indices
from colakit.evaluation.metrics import Bootstrap, Interval, Labels, Spread, indices_by_value
from colakit.evaluation.tables import Table, format_spread, percent
from colakit.utils.console import Reporter

SOURCE, PHENOMENON = "source", "phenomenon"
FEW, FEW_MINORITY = 30, 5  # the standard error of MCC is then about 0.2 or more
FEW_NOTE = f"fewer than {FEW} sentences, or {FEW_MINORITY} outside the majority"


@dataclass(frozen=True)
class SplitSlices:
    """A split divided by a field."""

    split: str
    field: str
    slices: Mapping[str, NDArray[np.int64]]  # name -> indices of its sentences, (n,)
    known: NDArray[np.int64]  # indices of the sentences with a known field
    left_out: tuple[int, ...] = ()  # indices of the other sentences


@dataclass(frozen=True)
class SliceScore:
    """MCC of an experiment on a slice: spread over seeds, and interval of the mean over sentences."""

    group: str
    mcc: Spread
    interval: Interval


@dataclass(frozen=True)
class SliceRow:
    """All experiments on one slice.

    Attributes:
        majority_rate: accuracy of always predicting the slice's most frequent label; None if it is empty.
        few: see `FEW_NOTE`.
        scores: one per experiment; empty if all labels are equal, which leaves MCC undefined.
    """

    name: str
    num_examples: int
    majority_rate: float | None
    few: bool
    scores: tuple[SliceScore, ...]


@dataclass(frozen=True)
class SliceReport:
    """All experiments on the slices of a split, and on all sentences with a known field."""

    slices: SplitSlices
    experiments: tuple[str, ...]
    whole: SliceRow
    rows: tuple[SliceRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"left_out": list(self.slices.left_out), "whole": asdict(self.whole), "parts": rows}


def slice_splits(
    corpus: Corpus, names: Sequence[str], settings: EvaluateSettings, reporter: Reporter
) -> list[SplitSlices]:
    """Return the slices that `group_by` and `annotations` select.

    Where `dev` is the union of the other dev splits, these are not sliced: their slices would be smaller.

    Raises:
        ColakitError: if a field is unknown, or is known for no sentence.
    """
    for field in settings.group_by:
        if field != SOURCE:
            raise ColakitError(
                f"--group-by {field}: sentences are grouped by source.{did_you_mean(field, [SOURCE])}",
                hint="Fields of minimal pairs need --pairs FILE; grammatical features, --annotations FILE.",
            )
    if "dev" in names and "dev" not in corpus.splits:
        names = [name for name in names if not name.endswith("_dev")]
    splits = [corpus.split(name) for name in names]
    slices: list[SplitSlices] = []
    if settings.group_by:
        for split in splits:
            if len(split.sources) == len(split):
                parts = indices_by_value(split.sources)
                slices.append(SplitSlices(split.name, SOURCE, parts, np.arange(len(split))))
        if not slices:
            raise ColakitError(
                f"{corpus.name}: the sources of its sentences are not known",
                hint="Only files in CoLA's four-column format have sources; leave out --group-by.",
            )
    if settings.annotations:
        annotations = read_annotations(Path(settings.annotations).expanduser())
        slices += _by_phenomenon(annotations, splits, reporter)
    return slices


def _by_phenomenon(
    annotations: Annotations, splits: Sequence[Split], reporter: Reporter
) -> list[SplitSlices]:
    slices: list[SplitSlices] = []
    for split in splits:
        rows = annotations.join(split)
        known, left_out = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        if len(left_out):
            reporter.say(
                f"{split.name}: {len(left_out)} of {len(split):,} sentences are missing from "
                f"{annotations.where} and are in no slice"
            )
        if len(known):
            parts = annotations.parts(rows)
            slices.append(SplitSlices(split.name, PHENOMENON, parts, known, tuple(left_out.tolist())))
    if not slices:
        raise ColakitError(
            f"{annotations.where}: none of its sentences is in {', '.join(split.name for split in splits)}",
            hint="Sentences are matched by their exact text; are these annotations of this data?",
        )
    return slices


def report_slices(
    slices: SplitSlices, labels: Labels, predictions: Sequence[ModelPredictions]
) -> SliceReport:
    """Return the metrics of all experiments on the slices of a split with (N,) `labels`."""
    experiments = tuple(group_indices(predictions))
    (whole,) = slice_scores(labels, predictions, {"all": slices.known})
    return SliceReport(slices, experiments, whole, slice_scores(labels, predictions, slices.slices))


def slice_scores(
    labels: Labels, predictions: Sequence[ModelPredictions], slices: Mapping[str, NDArray[np.int64]]
) -> tuple[SliceRow, ...]:
    """Return a row for each slice, given (N,) labels and every model's predictions on the N sentences."""
    rows = []
    for name, index in slices.items():
        size, majority = len(index), int(np.bincount(labels[index], minlength=1).max())
        scores: tuple[SliceScore, ...] = ()
        if 0 < majority < size:
            sliced = [model.predictions[index] for model in predictions]
            sample = Bootstrap(labels[index], sliced, predictions[0].logits.shape[1])
            scores = tuple(
                SliceScore(
                    group, Spread.of(sample.values["mcc"][models].tolist()), sample.mean("mcc", models)
                )
                for group, models in group_indices(predictions).items()
            )
        few = size < FEW or size - majority < FEW_MINORITY
        rows.append(SliceRow(name, size, majority / size if size else None, few, scores))
    return tuple(rows)


def slice_table(report: SliceReport) -> Table:
    """Return a table with a row for each slice and one for all of them."""
    rows = [
        [
            row.name + ("*" if row.few else ""),
            f"{row.num_examples:,}",
            "-" if row.majority_rate is None else percent(row.majority_rate),
            *([format_spread(score.mcc, 1, 2) for score in row.scores] or ["-"] * len(report.experiments)),
        ]
        for row in [*report.rows, report.whole]
    ]
    field = report.slices.field
    title = f"{report.slices.split}: MCC by {field} (*: {FEW_NOTE}; -: all labels equal)"
    return title, [field, "sentences", "majority %", *report.experiments], rows
