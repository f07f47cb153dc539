"""Annotations: parsing, errors, and the match with the sentences of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colakit.data.annotations import read_annotations
from colakit.data.corpora import Split, load_corpus
from colakit.errors import ColakitError

NUM_FEATURES, NUM_DEV = 63, 1043  # of the published annotations

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


def test_missing_annotations_are_named(tmp_path: Path) -> None:
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


def test_thousands_of_columns_and_too_many_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = "Sentence\t" + "\t".join(f"f{i}" for i in range(3000)) + "\nA" + "\t1" * 3000 + "\n"
    with pytest.raises(ColakitError, match=r":1: 3,001 columns; at most 1,000 are allowed"):
        read_annotations(written(tmp_path, wide))
    monkeypatch.setattr("colakit.data.annotations.MAX_ROWS", 3)
    with pytest.raises(ColakitError, match=r":5: more than 3 sentences"):
        read_annotations(written(tmp_path, HEADER + BODY))
