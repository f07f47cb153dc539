"""No name that a user may choose breaks a figure, a table or a file name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from support.run_records import run_data

from colakit.evaluation.metrics import Interval, Spread
from colakit.evaluation.slices import SliceReport, SliceRow, SliceScore, SplitSlices
from colakit.reports.figures.comparison import Score, SplitScores, draw_comparison
from colakit.reports.figures.curves import draw_curves, draw_overlay
from colakit.reports.figures.heatmaps import draw_slices
from colakit.reports.figures.style import FONT, NAME_CHARACTERS, save_figure, shown, shown_names

Run = Callable[..., tuple[int, str, str]]

NAMES = (
    *(
        "",
        " ",
        "_hidden",
        "$",
        "$x^2$",
        r"$\frac{1}{2}$",
        r"\x",
        r"$\x$",
        r"\$x\$",
        "100 %_&#{}^~",
        "|*`<b>[a](b)",
    ),
    *(
        "a\nb",
        "tab\t",
        "\x1b[31mred",
        "\x00",
        "\u202eleft",
        "שלום",
        "مرحبا",
        "中文",
        "🎉👩‍👩‍👧",
        "e\u0301",
        "\ufffe",
    ),
    *("\udcff", "\U000f0000", "n" * 300, "W" * 300, "中" * 300, "a " * 200),
)
FORMATS = ("png", "svg", "pdf")


def comparison(names: list[str]) -> Figure:
    score = Score(Interval(0.5, 0.4, 0.6), [0.4, 0.6])
    scores = {name: {"accuracy": score, "mcc": score} for name in names}
    return draw_comparison({name: SplitScores(0.5, scores) for name in names[:2]})


def heatmap(names: list[str]) -> Figure:
    scores = tuple(SliceScore(name, Spread(0.5, None), Interval(0.5, 0.4, 0.6)) for name in names)
    rows = tuple(SliceRow(name, 40, 0.5, False, scores) for name in names)
    return draw_slices(
        SliceReport(SplitSlices(names[0], names[0], {}, np.arange(0)), tuple(names), rows[0], rows)
    )


def curves(names: list[str]) -> Figure:
    return draw_curves(run_data(names[0], names[0], train_loss=names[0], dev=(), num_evaluations=1))


def overlay(names: list[str]) -> Figure:
    return draw_overlay([run_data(name, name, train_loss=names[0]) for name in names])


DRAWINGS: tuple[Callable[[list[str]], Figure], ...] = (curves, overlay, comparison, heatmap)


def draw_and_save(draw: Callable[[list[str]], Figure], names: list[str], path: Path) -> bytes:
    save_figure(draw(names), path, dpi=30)
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[path.suffix[1:]])
    if path.suffix == ".svg":
        ElementTree.fromstring(content)  # noqa: S314 - our own file
    return content


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("draw", DRAWINGS)
def test_figures_show_any_names(draw: Callable[[list[str]], Figure], form: str, tmp_path: Path) -> None:
    names = NAMES[FORMATS.index(form) :: 3]
    draw_and_save(draw, [*names], tmp_path / f"figure.{form}")


any_text = st.text(st.characters(categories=None) | st.sampled_from("$\\_%&{}\n"), max_size=60)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("draw", DRAWINGS)
def test_figures_show_many_arbitrary_names(
    draw: Callable[[list[str]], Figure], form: str, tmp_path: Path
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(names=st.lists(any_text, min_size=1, max_size=6, unique=True))
    def check(names: list[str]) -> None:
        draw_and_save(draw, names, tmp_path / f"figure.{form}")

    check()


@given(any_text)
@example("中" * 300)
@example("\udcff")
def test_text_of_a_figure_has_only_glyphs_of_its_font(name: str) -> None:
    glyphs = get_font(findfont(FONT)).get_charmap()
    text = shown(name)
    assert len(text) <= NAME_CHARACTERS
    assert all(character.isprintable() and ord(character) in glyphs for character in text)


@given(st.lists(any_text, min_size=1, max_size=20, unique=True))
@example(["a" * 100, "a" * 101])
@example(["中", "文"])
def test_names_that_differ_stay_different(names: list[str]) -> None:
    texts = shown_names(names)
    assert [*texts] == names
    assert len(set(texts.values())) == len(names)


def test_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    figure = comparison(["$x$", "y"])
    save_figure(figure, tmp_path / "figure.png", dpi=30)
    labels = [label for label in figure.axes[0].get_yticklabels() if label.get_text()]
    assert [(label.get_text(), label.get_parse_math()) for label in labels] == [("$x$", False), ("y", False)]


@pytest.mark.parametrize("form", FORMATS)
def test_equal_figures_have_equal_bytes(form: str, tmp_path: Path) -> None:
    one, other = (draw_and_save(comparison, ["a"], tmp_path / f"{i}.{form}") for i in range(2))
    assert one == other


def test_the_users_matplotlibrc_has_no_effect(tmp_path: Path) -> None:
    usual = draw_and_save(overlay, ["$a$"], tmp_path / "usual.svg")
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "axes.facecolor": "red"}):
        assert draw_and_save(overlay, ["$a$"], tmp_path / "other.svg") == usual
