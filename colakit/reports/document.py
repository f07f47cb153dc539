"""A report as a sequence of blocks, which the templates write as Typst, LaTeX, Markdown or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure

from colakit.evaluation.tables import Table


@dataclass(frozen=True)
class Heading:
    """A section title; level 1 or 2."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Formula:
    """A displayed formula, in both languages."""

    kind: ClassVar[str] = "formula"
    latex: str
    typst: str


@dataclass(frozen=True)
class Commands:
    """Command lines."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class TableBlock:
    """A table with a caption; `name` is that of its file."""

    kind: ClassVar[str] = "table"
    name: str
    table: Table


@dataclass(frozen=True)
class Picture:
    """A figure with a caption; `name` is that of its file."""

    kind: ClassVar[str] = "picture"
    name: str
    caption: str
    figure: Figure


Block = Heading | Paragraph | Bullets | Formula | Commands | TableBlock | Picture


@dataclass
class Document:
    """A report.

    Attributes:
        summary: the results in a few sentences, printed on the terminal too.
    """

    title: str
    summary: list[str]
    blocks: list[Block] = field(default_factory=list)
