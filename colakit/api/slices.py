"""`colakit evaluate --group-by source --annotations FILE`: the comparison on parts of a split.

Parts are told apart by a field: `source`, CoLA's first column, or `phenomenon`, the features of annotated
sentences, of which a sentence can have many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colakit.api.session import Session
from colakit.data.annotations import Annotations, read_annotations
from colakit.data.corpora import Corpus, Split
from colakit.errors import ColakitError, did_you_mean
from colakit.evaluation.comparison import Answers, members
from colakit.evaluation.metrics import Labels
from colakit.evaluation.slices import FEW, FEW_OTHERS, PartRow, parts_by, slice_scores
from colakit.evaluation.tables import Table, spread
from colakit.reports.figures.heatmaps import HeatRow, draw_heat_map
from colakit.reports.figures.plots import save_figure
from colakit.training.task_data import percent

SOURCE, PHENOMENON = "source", "phenomenon"
FLAGGED = f"fewer than {FEW} sentences, or than {FEW_OTHERS} outside the majority"


@dataclass(frozen=True)
class SplitSlices:
    """A split cut into parts by a field.

    Attributes:
        parts: name -> numbers of its sentences.
        whole: numbers of the sentences for which the field is known.
        left_out: numbers of the others.
    """

    split: str
    field: str
    parts: Mapping[str, NDArray[np.int64]]
    whole: NDArray[np.int64]
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class SliceReport:
    """All experiments on the parts of a split, and on the whole of them."""

    parting: SplitSlices
    experiments: tuple[str, ...]
    whole: PartRow
    rows: tuple[PartRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"left_out": list(self.parting.left_out), "whole": asdict(self.whole), "parts": rows}


def cut(session: Session, corpus: Corpus, splits: Sequence[str]) -> list[SplitSlices]:
    """Return the parts that the settings ask for.

    Raises:
        ColakitError: if a field is unknown, or no sentence's is known.
    """
    settings = session.settings.evaluate
    for field in settings.group_by:
        if field != SOURCE:
            raise ColakitError(
                f"--group-by {field}: sentences are grouped by source.{did_you_mean(field, [SOURCE])}",
                hint="Fields of minimal pairs need --pairs FILE; grammatical features, --annotations FILE.",
            )
    chosen = [corpus.split(name) for name in _widest(corpus, splits)]
    found: list[SplitSlices] = []
    if settings.group_by:
        found += _by_source(corpus.name, chosen)
    if settings.annotations:
        annotations = read_annotations(Path(settings.annotations).expanduser())
        found += _by_phenomenon(session, annotations, chosen)
    return found


def _widest(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    """Leave out the splits that `dev` holds where it is their union: parts are small enough as it is."""
    if "dev" not in splits or "dev" in corpus.splits:
        return list(splits)
    return [name for name in splits if not name.endswith("_dev")]


def _by_source(corpus: str, splits: Sequence[Split]) -> list[SplitSlices]:
    known = [split for split in splits if len(split.sources) == len(split)]
    if not known:
        raise ColakitError(
            f"{corpus}: the sources of its sentences are not known",
            hint="Only files in CoLA's four columns name them; leave out --group-by.",
        )
    return [SplitSlices(s.name, SOURCE, parts_by(s.sources), np.arange(len(s))) for s in known]


def _by_phenomenon(session: Session, annotations: Annotations, splits: Sequence[Split]) -> list[SplitSlices]:
    found: list[SplitSlices] = []
    for split in splits:
        joined = annotations.join(split)
        whole, left_out = np.flatnonzero(joined >= 0), np.flatnonzero(joined < 0)
        if len(left_out):
            session.reporter.say(
                f"{split.name}: {len(left_out)} of {len(split):,} sentences do not stand in "
                f"{annotations.where} and are in no part of it"
            )
        if len(whole):
            parts = annotations.parts(joined)
            found.append(SplitSlices(split.name, PHENOMENON, parts, whole, tuple(left_out.tolist())))
    if not found:
        raise ColakitError(
            f"{annotations.where}: none of its sentences is in {', '.join(split.name for split in splits)}",
            hint="Sentences are joined by their exact text; are these annotations of this data?",
        )
    return found


def measure_parts(parting: SplitSlices, labels: Labels, answers: Sequence[Answers]) -> SliceReport:
    """Return the figures of all experiments on the parts."""
    (whole,) = slice_scores(labels, answers, {"all": parting.whole})
    return SliceReport(parting, tuple(members(answers)), whole, slice_scores(labels, answers, parting.parts))


def part_table(parted: SliceReport) -> Table:
    """Return a row for each part, and one for all of them."""
    field = parted.parting.field
    rows = [
        [
            row.name + ("*" if row.few else ""),
            str(row.num_examples),
            "-" if row.majority_rate is None else percent(row.majority_rate),
            *([spread(score.mcc, 1, 2) for score in row.scores] or ["-"] * len(parted.experiments)),
        ]
        for row in [*parted.rows, parted.whole]
    ]
    title = f"{parted.parting.split}: MCC by {field} (*: {FLAGGED}; -: labels all alike)"
    return title, [field, "sentences", "majority %", *parted.experiments], rows


def draw_parts(session: Session, parted: Sequence[SliceReport]) -> None:
    """With `--out`, draw a heat map for each field and split there."""
    if session.out is None:
        return
    settings = session.settings.plot
    for found in parted:
        columns = len(found.experiments)
        split, field = found.parting.split, found.parting.field
        figure = draw_heat_map(
            f"{split}: MCC by {field}",
            found.experiments,
            _heat_row(found.whole, columns),
            [_heat_row(row, columns) for row in found.rows if row.num_examples],
            f"in grey: {FLAGGED}; \N{EN DASH}: labels all alike",
        )
        save_figure(figure, session.out / f"{field}-{split}.{settings.format}", dpi=settings.dpi)


def _heat_row(row: PartRow, columns: int) -> HeatRow:
    values: list[float | None] = [score.mcc.mean for score in row.scores]
    return HeatRow(row.name, row.num_examples, values or [None] * columns, row.few)
