"""Curves: each panel compares one quantity, measured in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from support.run_records import MAJORITY_RATES, run_data

from colakit.reports.figures.curves import RunData, draw_curves, draw_overlay

MIXTURE = "0.5·cross-entropy + 0.5·KL"
LOSS, TRAIN_LOSS = "cross-entropy (nats)", f"train: {MIXTURE}"
PANELS = ["accuracy (%), argmax", "accuracy (%), tuned threshold", "MCC, argmax", "MCC, tuned threshold"]


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def curves(axis: Axes) -> list[list[float]]:
    """Return the values of the lines of a panel, without horizontal and vertical lines and legend handles."""
    lines = (list(map(float, line.get_ydata())) for line in axis.lines if len(line.get_xdata()))
    return [values for values in lines if len(values) > 2]


def horizontal(axis: Axes) -> list[float]:
    return [
        float(y) for line in axis.lines for y in set(line.get_ydata()) if list(line.get_xdata()) == [0, 1]
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_losses_of_different_kinds_have_panels_of_their_own() -> None:
    distilled = panels(draw_curves(run_data(train_loss=MIXTURE)))
    assert [*distilled] == [LOSS, TRAIN_LOSS, *PANELS]
    assert curves(distilled[LOSS]) == [pytest.approx([1, 1 / 2, 1 / 3])]  # validation
    raw, _ = curves(distilled[TRAIN_LOSS])
    assert raw == [5 / i for i in range(1, 7)]  # of single steps


def test_cross_entropy_of_train_and_validation_share_a_panel() -> None:
    figure = draw_curves(run_data())
    assert [*panels(figure)] == [LOSS, *PANELS]
    raw, smooth, val = curves(panels(figure)[LOSS])
    assert raw == [5 / i for i in range(1, 7)]
    assert smooth[2] == pytest.approx(sum(raw[:5]) / 5)
    assert smooth[0] == pytest.approx(sum(raw[:3]) / 3)
    assert val == pytest.approx([1, 1 / 2, 1 / 3])


def test_train_is_drawn_beside_validation_at_argmax_only() -> None:
    drawn = panels(draw_curves(run_data(tracked=True)))
    train, val = curves(drawn["MCC, argmax"])
    assert train == pytest.approx([0.1, 0.2, 0.3])
    assert val == pytest.approx([0.11, 0.12, 0.13])
    val, id_dev, ood_dev = curves(drawn["MCC, tuned threshold"])
    assert val == pytest.approx([0.21, 0.22, 0.23])
    assert id_dev == ood_dev == [0.3] * 3


def test_without_a_threshold_all_splits_share_a_panel() -> None:
    drawn = panels(draw_curves(run_data(threshold=None, tracked=True)))
    assert [*drawn] == [LOSS, "accuracy (%), argmax", "MCC, argmax"]
    assert len(curves(drawn["MCC, argmax"])) == 4
    assert draw_overlay([run_data(threshold=None)] * 2)


def test_majority_rates_are_those_of_the_splits_drawn() -> None:
    drawn = panels(draw_curves(run_data()))
    assert horizontal(drawn["accuracy (%), argmax"]) == [60]
    rates = [100 * rate for rate in MAJORITY_RATES.values()]
    assert horizontal(drawn["accuracy (%), tuned threshold"]) == rates
    overlay = panels(draw_overlay([run_data(), run_data(seed=1)]))
    assert horizontal(overlay["accuracy (%), argmax"]) == [60]


def test_a_run_without_step_records_shows_its_mean_training_loss() -> None:
    run = run_data()
    run = RunData(run.name, run.group, [], run.evaluations, run.summary)
    train, val = curves(panels(draw_curves(run))[LOSS])
    assert train == [2, 1, 2 / 3]
    assert val == pytest.approx([1, 1 / 2, 1 / 3])


def test_an_overlay_shows_train_and_validation_of_every_experiment() -> None:
    figure = draw_overlay(
        [
            run_data(group="a"),
            run_data(group="b", train_loss=MIXTURE),
            run_data(group="b", seed=1, train_loss=MIXTURE),
        ]
    )
    drawn = panels(figure)
    assert [*drawn] == [LOSS, TRAIN_LOSS, *PANELS]
    assert curves(drawn[TRAIN_LOSS]) == [[2, 1, 2 / 3]]
    assert len(curves(drawn["MCC, argmax"])) == 2 + 4  # a: train, val; b: train, two seeds, mean
    assert {"a", "b", "validation", "validation, one run", "train (dropout on)"} <= {*legend(figure)}


def test_seeds_of_different_lengths_are_averaged_where_all_were_evaluated() -> None:
    drawn = panels(draw_overlay([run_data(num_evaluations=3), run_data(num_evaluations=5, seed=1)]))
    lengths = [len(values) for values in curves(drawn["MCC, tuned threshold"])]
    assert lengths == [3, 5, 3]


def test_single_evaluations_are_visible_and_all_panels_share_their_range() -> None:
    drawn = panels(draw_overlay([run_data(num_evaluations=1), run_data(num_evaluations=1, seed=1)]))
    shown = [line for line in drawn["MCC, argmax"].lines if len(line.get_xdata()) == 1]
    assert len(shown) >= 3
    assert all(line.get_marker() != "None" for line in shown)
    for figure in (draw_curves(run_data()), draw_overlay([run_data(), run_data(seed=1)])):
        assert len({axis.get_xlim() for axis in panels(figure).values()}) == 1
        lines = [line for axis in figure.axes for line in axis.lines if line.get_linestyle() == ":"]
        assert {line.get_marker() for line in lines} == {"None"}  # majority rates are no data


def test_more_experiments_than_colours_differ_in_their_markers() -> None:
    runs = [run_data(group=f"experiment {i}") for i in range(20)]
    axis = panels(draw_overlay(runs))["MCC, tuned threshold"]
    styles = [
        (to_hex(line.get_color()), line.get_marker()) for line in axis.lines if line.get_marker() != "None"
    ]
    assert len(styles) == len(set(styles)) == 20


def test_figures_fit_any_number_of_experiments() -> None:
    heights: Sequence[float] = [
        draw_overlay([run_data(group=f"experiment {i}") for i in range(count)]).get_figheight()
        for count in (2, 40)
    ]
    assert heights[1] > heights[0]
