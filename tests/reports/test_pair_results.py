"""The section of a report on minimal pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colakit.errors import ColakitError
from colakit.evaluation.metrics import Interval
from colakit.evaluation.minimal_pairs import Accuracy, PairResult
from colakit.reports.document import TableBlock
from colakit.reports.pairs import describe_pairs


def accuracy(value: float) -> Accuracy:
    return Accuracy(Interval(value, value - 0.1, value + 0.1), value / 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two models on ten pairs of two phenomena, as `evaluate --pairs` writes them."""
    results = [
        PairResult(name, accuracy(0.6), {"phenomenon": {"a": accuracy(0.5), "b": accuracy(0.8)}}, 1, 0)
        for name in ("base", "tuned")
    ]
    content = {
        "files": ["pairs.jsonl"],
        "pairs": 10,
        "bos": True,
        "group_sizes": {"phenomenon": {"a": 6, "b": 4}},
        "models": [each.as_dict() for each in results],
    }
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    return tmp_path


def test_the_section_has_every_group_of_every_model(folder: Path) -> None:
    (table,) = [block.table for block in describe_pairs(folder) if isinstance(block, TableBlock)]
    _, columns, rows = table
    assert columns[:3] == ["phenomenon", "pairs", "base: accuracy %"]
    assert [row[:2] for row in rows] == [["a", "6"], ["b", "4"], ["mean of groups", ""], ["all", "10"]]
    assert rows[1][2:] == ["80.00 [70.00, 90.00]", "40.00"] * 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"pairs": 0}, "pairs"),
        ({"models": []}, "models"),
        ({"group_sizes": {"phenomenon": {"a": 6}}}, "groups must be those of group_sizes"),
        ({"group_sizes": {"phenomenon": {"a": -1, "b": 4}}}, "group_sizes"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(
    changes: dict[str, object], fault: str, folder: Path
) -> None:
    path = folder / "pairs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ColakitError, match=fault):
        list(describe_pairs(folder))


def test_another_folder_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ColakitError) as refusal:
        list(describe_pairs(tmp_path))
    assert refusal.value.hint == "Give the --out folder of `colakit evaluate --pairs`."
