"""Parts of a split: annotations and how they are joined, figures by hand, and the map of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from colakit.data.annotations import read_annotations
from colakit.data.corpora import Split, load_corpus
from colakit.errors import ColakitError
from colakit.evaluation.comparison import Answers
from colakit.evaluation.metrics import Spread
from colakit.evaluation.slices import parts_by, slice_scores
from colakit.reports.figures.heatmaps import HeatRow, draw_heat_map
from colakit.reports.figures.plots import save_figure

NUM_FEATURES, NUM_DEV = 63, 1043  # of the published annotations


def answers(model: str, group: str, predictions: list[int]) -> Answers:
    found = np.array(predictions)
    return Answers(model, group, None, np.eye(2, dtype=np.float32)[found], found)


def index(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_mcc_of_parts_by_hand() -> None:
    labels = np.array([1, 1, 0, 0, 1, 0])
    models = [
        answers("a-0", "a", [1, 1, 0, 0, 0, 1]),
        answers("b-0", "b", [1, 0, 0, 0, 0, 1]),
        answers("a-1", "a", [1, 0, 0, 0, 1, 0]),
    ]
    parts = {"first": index(0, 1, 2, 3), "last": index(4, 5), "good": index(0, 1, 4), "none": index()}
    first, last, good, none = slice_scores(labels, models, parts)
    some = 2 / math.sqrt(12)  # one of four wrong: (1·2 - 0·1) / √(1·2·2·3)
    assert [score.group for score in first.scores] == ["a", "b"]
    assert first.scores[0].mcc == Spread(
        pytest.approx((1 + some) / 2), pytest.approx((1 - some) / math.sqrt(2))
    )
    assert first.scores[1].mcc == Spread(pytest.approx(some), None)
    assert [score.mcc.mean for score in last.scores] == [0, -1]  # seeds of a: -1 and 1
    for score in (*first.scores, *last.scores):
        assert score.interval.value == pytest.approx(score.mcc.mean)
        assert score.interval.low <= score.interval.value <= score.interval.high
    assert [row.num_examples for row in (first, last, good, none)] == [4, 2, 3, 0]
    assert [row.majority_rate for row in (first, last, good, none)] == [0.5, 0.5, 1, None]
    assert (good.scores, none.scores) == ((), ())  # labels all alike: no MCC


@pytest.mark.parametrize(("size", "others", "few"), [(30, 5, False), (29, 14, True), (200, 4, True)])
def test_small_and_lopsided_parts_are_flagged(size: int, others: int, few: bool) -> None:
    labels = np.repeat([1, 0], [size - others, others])
    (row,) = slice_scores(labels, [answers("a", "a", [1] * size)], {"all": np.arange(size)})
    assert row.few == few


def test_parts_by_value_hold_every_sentence_once() -> None:
    found = parts_by(["b", "a", "b", "c", "a"])
    assert {name: numbers.tolist() for name, numbers in found.items()} == {"b": [0, 2], "a": [1, 4], "c": [3]}
    assert list(found) == ["b", "a", "c"]


HEADER = "Source\tDomain\tAcceptability\tSentence\tPassive\tLong\n"
BODY = (
    "s1\tIn\t1\tIt was seen.\t1\t0\n"
    "s1\tIn\t1\tWe met.\t0\t0\n"
    "s2\tOut\t1\tWe met.\t0\t1\n"
    "s2\tOut\t0\tWe met.\t1\t1\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "annotations.tsv"
    path.write_bytes(text.encode())
    return path


def test_sentences_are_joined_by_their_text_then_source_then_label(tmp_path: Path) -> None:
    found = read_annotations(written(tmp_path, HEADER + BODY))
    assert found.features == ("Passive", "Long")
    split = Split(
        "dev",
        ("We met.", "It was seen.", "We met.", "We met. ", "We met."),
        np.array([0, 0, 1, 1, 1]),
        ("s2", "elsewhere", "s1", "s1", "elsewhere"),
    )
    joined = found.join(split)
    assert joined.tolist() == [3, 0, 1, -1, 1]
    parts = {name: numbers.tolist() for name, numbers in found.parts(joined).items()}
    assert parts == {"Passive": [0, 1], "Long": [0]}
    assert found.join(Split("bare", ("We met.", "It was seen."))).tolist() == [1, 0]


def test_the_sentence_and_one_feature_are_enough(tmp_path: Path) -> None:
    found = read_annotations(written(tmp_path, "Sentence\tLong\r\n“A”\t1\r\nB\t0"))
    assert found.features == ("Long",)
    split = Split("dev", ("B", "“A”"), np.array([1, 0]), ("x", "x"))
    assert found.parts(found.join(split))["Long"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "": "has no annotated sentence",
        HEADER: "has no annotated sentence",
        "Text\tPassive\nA\t1\n": ":1: no column 'Sentence'",
        "Sentence\tSource\nA\tx\n": ":1: no column but Sentence, Source",
        "Sentence\tLong\tLong\nA\t1\t1\n": ":1: two columns are called 'Long'",
        HEADER + BODY + "s1\tIn\t1\tToo short.\t1\n": ":6: every row must have 6 columns",
        HEADER
        + BODY.replace("\t1\t1\n", "\tyes\t1\n"): ":5: a feature must be 0 or 1 (1 invalid line: line 5: "
        "Passive is 'yes')",
        HEADER + "s1\tIn\t1\tA\t2\t\n": "line 2: Passive is '2'; line 2: Long is ''",
        HEADER + "s1\tIn\t1\t\0\t1\t0\n": "a NUL byte",
    }.items(),
)
def test_faults_of_annotations_are_named_by_line(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ColakitError) as caught:
        read_annotations(written(tmp_path, text))
    assert expected in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_annotations_that_are_not_there_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(ColakitError, match=str(path)):
            read_annotations(path)


def test_the_published_annotations_cover_all_of_dev_but_three_sentences(shared: Path) -> None:
    path = shared / "cola" / "CoLA_grammatical_annotations_minor_features.tsv"
    if not path.is_file():
        pytest.skip(f"needs the published annotations, {path}")
    found = read_annotations(path)
    dev = load_corpus(shared / "cola" / "cola_public.zip").split("dev")
    assert (len(found.features), len(found.values), len(dev)) == (NUM_FEATURES, NUM_DEV, NUM_DEV)
    joined = found.join(dev)
    assert int((joined < 0).sum()) == 3  # written differently in the two files
    known = np.flatnonzero(joined >= 0)
    assert [found.sources[joined[i]] for i in known] == [dev.sources[i] for i in known]
    labels = dev.require_labels()
    differ = [i for i in known if found.labels[joined[i]] != str(labels[i])]
    assert len(differ) == 3  # two judged differently; one whose other reading has another text there
    assert len(set(joined[known].tolist())) == len(known) - 1  # which shares its only row
    parts = found.parts(joined)
    assert sum(map(len, parts.values())) == int(found.values[joined[known]].sum())
    assert len(parts["High Arity"]) == 253


@pytest.fixture
def rows() -> list[HeatRow]:
    return [
        HeatRow("low", 40, [-0.4, 0.0]),
        HeatRow("high", 50, [0.5, 0.3]),
        HeatRow("one label", 35, [None, None]),
        HeatRow("small", 3, [1.0, 0.9], few=True),
    ]


def test_a_heat_map_orders_rows_and_writes_every_value(rows: list[HeatRow]) -> None:
    figure = draw_heat_map("dev", ["first model", "second"], HeatRow("all", 1234, [0.2, -0.001]), rows)
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["all", "high", "low", "one label", "small"]
    heights = axis.get_yticks().tolist()
    assert heights == sorted(heights)
    texts = [text.get_text() for text in axis.texts]
    assert texts[:3] == ["0.20", "0.00", "1,234"]
    assert texts[3:9] == ["0.50", "0.30", "50", "−0.40", "0.00", "40"]  # noqa: RUF001
    assert texts[9:] == ["–", "–", "35", "1.00", "0.90", "3"]  # noqa: RUF001


def test_colours_are_white_at_zero_and_blue_above_it(rows: list[HeatRow]) -> None:
    figure = draw_heat_map("dev", ["a", "b"], HeatRow("all", 9, [0.0, 0.0]), rows)
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(cells) == 10
    colours = [to_rgb(cell.get_facecolor()) for cell in cells]
    assert colours[0] == pytest.approx((1, 1, 1), abs=0.02)
    high, low = colours[2], colours[4]
    assert high[2] > high[0]  # more blue than red
    assert low[0] > low[2]
    assert colours[6] == to_rgb("0.93")


def test_many_rows_stand_in_panels_of_like_height_and_none_is_lost(tmp_path: Path) -> None:
    many = [HeatRow(f"part {i}", 30 + i, [i / 100, -i / 100]) for i in range(63)]
    figure = draw_heat_map("dev", ["a", "b"], HeatRow("all", 1040, [0.1, 0.1]), many, "a note")
    panels = [
        axis for axis in figure.axes if axis.get_yticklabels() and axis.get_xticklabels()[0].get_text() == "a"
    ]
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in panels]
    assert [len(part) for part in names] == [32, 32]
    assert sorted(names[0] + names[1]) == sorted(["all", *(row.name for row in many)])
    assert len({axis.get_ylim() for axis in panels}) == 1
    again = draw_heat_map("dev", ["a", "b"], HeatRow("all", 1040, [0.1, 0.1]), many, "a note")
    for name, drawn in (("map", figure), ("again", again)):
        save_figure(drawn, tmp_path / f"{name}.png", dpi=50)
    assert (tmp_path / "map.png").read_bytes() == (tmp_path / "again.png").read_bytes()
