"""Figures of sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from colakit.errors import ColakitError
from colakit.reports.document import Picture, TableBlock
from colakit.reports.figures.style import save_figure
from colakit.reports.figures.sweeps import Axis, draw_importance, draw_parallel, draw_slices
from colakit.reports.sweep import describe_sweep
from colakit.sweeps.results import TrialResult, as_dict
from colakit.utils.files import write_json


@pytest.fixture
def trials() -> list[TrialResult]:
    values = [0.1, 0.3, 0.2, 0.25, 0.15, 0.05, 0.12, 0.31]
    return [
        TrialResult(
            number,
            "pruned" if number == 5 else "complete",
            value,
            {
                "finetune.lr": 10.0 ** (number - 6),
                "lora.rank": 2 ** (number % 3),
                "lora.dora": not number % 2,
            },
            {},
            1.0,
            "host",
            "folder",
        )
        for number, value in enumerate(values)
    ]


def test_slices_have_a_panel_for_each_setting_and_mark_the_winner(
    trials: list[TrialResult], tmp_path: Path
) -> None:
    figure = draw_slices(trials, {"finetune.lr"}, "val MCC")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["finetune.lr", "lora.rank", "lora.dora"]
    for panel in panels:
        by_label = {line.get_label(): line for line in panel.lines}
        assert list(by_label["winner"].get_ydata()) == [0.31]
        assert list(by_label["pruned (last evaluation)"].get_ydata()) == [0.05]
        assert len(by_label["complete"].get_ydata()) == 6
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["false", "true"]
    save_figure(figure, tmp_path / "slices.png", dpi=60)


def test_parallel_coordinates_end_at_the_figure_of_each_trial(
    trials: list[TrialResult], tmp_path: Path
) -> None:
    figure = draw_parallel(trials, {"finetune.lr"}, "val MCC")
    lines = [line for line in figure.axes[0].lines if len(line.get_ydata()) == 4]
    assert len(lines) == len(trials)
    (winner,) = (line for line in lines if line.get_label() == "winner")
    assert list(winner.get_ydata()) == [1.0, 0.5, 0.0, 1.0]
    save_figure(figure, tmp_path / "parallel.png", dpi=60)


def test_many_numbers_are_placed_by_size_and_few_equally() -> None:
    scale = Axis([10.0**power for power in range(-6, 2)], log=True)
    assert scale.position(1e-6) == 0
    assert scale.position(10.0) == 1
    assert scale.position(10**-2.5) == pytest.approx(0.5)
    assert [Axis([2, 4, 16], log=False).position(value) for value in (2, 4, 16)] == [0, 0.5, 1]
    assert [text for _, text in Axis([None, "kl", None], log=False).ticks()] == ["kl", "null"]


def test_importance_is_drawn_in_its_order() -> None:
    figure = draw_importance({"lora.rank": 0.2, "finetune.lr": 0.8})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [20, 80]


def test_a_report_has_the_trials_of_a_sweep(trials: list[TrialResult], tmp_path: Path) -> None:
    summary = {
        "command": "sweep",
        "objective": "val MCC",
        "note": "trial 7 is the best of 8 trials",
        "space": {"finetune.lr": "1e-06 to 10, log", "lora.rank": "1, 2, 4", "lora.dora": "false, true"},
        "importance": {"finetune.lr": 0.7, "lora.rank": 0.3},
        "trials": [as_dict(each) for each in trials],
        "winner": as_dict(trials[7]),
    }
    write_json(tmp_path / "summary.json", summary)
    blocks = list(describe_sweep(tmp_path))
    tables = {block.name: block.table for block in blocks if isinstance(block, TableBlock)}
    assert [row[0] for row in tables["sweep-trials"][2]] == ["7", "1", "3", "2", "4", "6", "0", "5"]
    assert tables["sweep-trials"][2][0][4:6] == ["0.310", "complete"]
    names = [block.name for block in blocks if isinstance(block, Picture)]
    assert names == ["sweep-slices", "sweep-parallel", "sweep-importance"]
    for broken in ({**summary, "trials": []}, {**summary, "space": 3}, {"command": "finetune"}):
        write_json(tmp_path / "summary.json", broken)
        with pytest.raises(ColakitError) as refusal:
            list(describe_sweep(tmp_path))
        assert refusal.value.exit_code == 2
        assert refusal.value.hint == "Give the folder of a finished sweep."
