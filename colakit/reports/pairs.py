"""The section of a report on minimal pairs, from the `pairs.json` of `evaluate --pairs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from colakit.evaluation.metrics import Interval
from colakit.evaluation.minimal_pairs import Accuracy, PairResult, pair_tables
from colakit.reports.document import Block, Heading, Paragraph, TableBlock
from colakit.utils.documents import Document, read_document

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class IntervalRecord(Document):
    """A share of pairs with its interval."""

    value: Share
    low: Share
    high: Share


class AccuracyRecord(Document):
    """The two shares of correct pairs."""

    summed: IntervalRecord
    per_token: Share

    def accuracy(self) -> Accuracy:
        """Return the values."""
        return Accuracy(Interval(self.summed.value, self.summed.low, self.summed.high), self.per_token)


class ModelRecord(AccuracyRecord):
    """The results of one language model."""

    model: str
    ties: Count
    truncated: Count
    groups: Annotated[dict[str, dict[str, AccuracyRecord]], Field(max_length=100)]

    def result(self) -> PairResult:
        """Return the results."""
        groups = {
            field: {name: each.accuracy() for name, each in by.items()} for field, by in self.groups.items()
        }
        return PairResult(self.model, self.accuracy(), groups, self.ties, self.truncated)


class PairsRecord(Document):
    """pairs.json."""

    pairs: Annotated[int, Field(ge=1, lt=2**31)]
    group_sizes: Annotated[dict[str, Annotated[dict[str, Count], Field(min_length=1)]], Field(max_length=100)]
    models: Annotated[list[ModelRecord], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _has_groups(self) -> PairsRecord:
        sizes = {field: by.keys() for field, by in self.group_sizes.items()}
        for each in self.models:
            if {field: by.keys() for field, by in each.groups.items()} != sizes:
                raise ValueError(f"model {each.model}: groups must be those of group_sizes")
        return self


def describe_pairs(folder: Path) -> Iterator[Block]:
    """Yield the section on the minimal pairs measured in `folder`.

    Raises:
        ColakitError: if `evaluate --pairs` has not written it.
    """
    hint = "Give the --out folder of `colakit evaluate --pairs`."
    record = read_document(folder / "pairs.json", PairsRecord, hint=hint)
    yield Heading("Minimal pairs")
    yield Paragraph(
        "A pair is correct if the language model gives the acceptable sentence the higher probability, "
        f"summed over tokens or per token. Ties count as wrong. There are {record.pairs:,} pairs; intervals "
        "are Wilson's, 95 %."
    )
    tables = pair_tables(record.group_sizes, record.pairs, [each.result() for each in record.models])
    for number, table in enumerate(tables):
        yield TableBlock(f"pairs-{number}", table)
