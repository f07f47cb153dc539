"""Writing a report as Typst, PDF, LaTeX, Markdown or HTML, and its tables as LaTeX or CSV.

Equal documents give equal bytes: no file has a date.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colakit.evaluation.tables import Table, markdown_table
from colakit.reports.document import Document, Picture, TableBlock
from colakit.reports.figures.style import save_figure
from colakit.utils.extras import import_extra
from colakit.utils.files import replacing, write_text
from colakit.utils.text import escape_markdown, file_name, printable

EXTRA = "report"
TEMPLATES = Path(__file__).parent / "templates"
FIGURES = {"typ": "svg", "tex": "pdf", "md": "svg", "html": "svg"}  # format of a report -> of its figures
FORMATS = ("pdf", *FIGURES)
TABLE_FORMATS = ("tex", "csv")
DPI = 150

LATEX_COMMANDS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "\u2019": "'"},
    **{"\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$", "\N{GREEK SMALL LETTER TAU}": r"$\tau$"},
    **{"≤": r"$\leq$", "≥": r"$\geq$", "‖": r"$\Vert$", "²": r"$^2$", "\N{MINUS SIGN}": "$-$"},
    **{"…": r"\ldots{}", "\N{EN DASH}": "--", "-": "{-}"},  # no ligature of two hyphens
}
PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII; any of it may be mark-up in Typst


def write_report(document: Document, path: Path) -> None:
    """Write a report in the format of the suffix of `path`, one of `FORMATS`.

    Figures of a `.typ`, `.tex` or `.md` lie in the folder STEM-figures beside it. PDF and HTML are one file.

    Raises:
        ColakitError: if a package of the extra `report` is missing.
    """
    suffix = path.suffix.removeprefix(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == "pdf":
        typst = import_extra("typst", EXTRA)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "report.typ"
            write_report(document, source)
            with replacing(path) as temporary:
                temporary.write_bytes(typst.compile(source, root=folder, format="pdf"))
        return
    pictures = [block for block in document.blocks if isinstance(block, Picture)]
    files: dict[str, str] = {}
    figures = path.parent / f"{path.stem}-figures"
    for number, picture in enumerate(pictures, 1):
        if suffix == "html":
            files[picture.name] = _data_uri(picture)
            continue
        figures.mkdir(exist_ok=True)
        slug = re.sub("[^a-z0-9]+", "-", picture.name.lower()).strip("-")
        name = f"{number:02d}-{slug[:40]}.{FIGURES[suffix]}"  # LaTeX takes few characters
        save_figure(picture.figure, figures / name, dpi=DPI)
        files[picture.name] = f"{figures.name}/{name}"
    write_text(path, _render(suffix, document=document, files=files))


def write_tables(document: Document, folder: Path, formats: Sequence[str]) -> Iterator[Path]:
    """Write every table to `folder` in each of `formats` (of `TABLE_FORMATS`); yield the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for block in document.blocks:
        if isinstance(block, TableBlock):
            for suffix in formats:
                path = folder / f"{file_name(block.name)}.{suffix}"
                write_text(path, latex_tabular(block.table) + "\n" if suffix == "tex" else _csv(block.table))
                yield path


def _render(suffix: str, **values: Any) -> str:
    jinja2 = import_extra("jinja2", EXTRA)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: Mapping[str, Callable[..., str]] = {
        "typst": typst_text,
        "typst_string": lambda text: printable(text).replace("\\", "\\\\").replace('"', '\\"'),
        "latex": latex_text,
        "latex_tabular": latex_tabular,
        "markdown": escape_markdown,
        "markdown_table": markdown_table,
        "mathml": lambda latex: import_extra("latex2mathml.converter", EXTRA).convert(latex, display="block"),
    }
    environment.filters.update(filters)
    return environment.get_template(f"report.{suffix}.j2").render(**values)


def typst_text(text: str) -> str:
    """Escape text for the mark-up of Typst."""
    return PUNCTUATION.sub(r"\\\g<0>", printable(text))


def latex_text(text: str) -> str:
    """Escape text for LaTeX; characters that its default fonts lack are written as U+XXXX."""

    def command(character: str) -> str:
        if character in LATEX_COMMANDS:
            return LATEX_COMMANDS[character]
        return character if ord(character) < 0x180 else f"U+{ord(character):04X}"  # Latin, A to Ž

    return "".join(map(command, printable(text)))


def latex_tabular(table: Table) -> str:
    """Return a table as a `tabular` for LaTeX with booktabs, without its title."""
    _, columns, rows = table
    head, *body = [" & ".join(map(latex_text, row)) + r" \\" for row in (columns, *rows)]
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    letters = "l" * len(columns)
    return f"\\begin{{tabular}}{{{letters}}}\n{inner}\n\\end{{tabular}}"


def _csv(table: Table) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([table[1], *table[2]])
    return file.getvalue()


def _data_uri(picture: Picture) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        save_figure(picture.figure, path, dpi=DPI)
        return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
