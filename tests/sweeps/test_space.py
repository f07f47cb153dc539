"""The search space: grids, sampling that a resumed sweep repeats, values as text."""

from __future__ import annotations

import pytest

from colakit.errors import ColakitError
from colakit.sweeps.space import Dimension, as_choice, as_value, grid_of, make_sampler

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`")

SPACE = (
    Dimension("lora.rank", (2, 4, 8)),
    Dimension("finetune.epochs", (), 1, 5, step=2, is_integer=True),
    Dimension("lora.dropout", (), 0.0, 0.3, step=0.1),
)


def sampled(name: str, index: int) -> dict[str, object]:
    trial = optuna.create_study().ask()
    trial.study.sampler = make_sampler(name, SPACE, 7, index)
    for dimension in SPACE:
        dimension.suggest(trial)
    return trial.params


def test_a_grid_has_every_combination_once_in_random_order() -> None:
    grid = grid_of(SPACE, 0)
    assert len(grid) == len({tuple(each.values()) for each in grid}) == 3 * 3 * 4
    assert grid != grid_of(SPACE, 1)
    assert {each["finetune.epochs"] for each in grid} == {1, 3, 5}
    assert {each["lora.dropout"] for each in grid} == {0.0, 0.1, 0.2, 0.3}
    assert [sampled("grid", index) for index in (0, 5)] == [grid_of(SPACE, 7)[index] for index in (0, 5)]


def test_a_grid_needs_a_step_and_a_bounded_number_of_combinations() -> None:
    with pytest.raises(ColakitError, match=r"finetune.lr is a range without a step"):
        grid_of([Dimension("finetune.lr", (), 1e-4, 1e-2, log=True)], 0)
    with pytest.raises(ColakitError, match="combinations; at most 100,000"):
        grid_of([Dimension(str(number), tuple(range(20))) for number in range(5)], 0)


@pytest.mark.parametrize("name", ["random", "tpe", "grid"])
def test_the_index_of_a_trial_determines_its_sample(name: str) -> None:
    assert sampled(name, 3) == sampled(name, 3)
    assert len({str(sampled(name, index)) for index in range(8)}) > 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("c_attn", "c_proj"), "c_attn,c_proj"),
        ({"h.0": 4}, '{"h.0": 4}'),
        (None, "null"),
        (True, "true"),
        (0.1 + 0.2, "0.30000000000000004"),
        ("kl", "kl"),
    ],
)
def test_choices_are_written_as_set_takes_them(value: object, text: str) -> None:
    assert as_value(as_choice(value)) == text
