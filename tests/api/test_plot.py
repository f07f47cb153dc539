"""`plot`: which figures it draws, from which runs, and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.run_records import run_data, write_predictions, write_run

from colakit.storage.run_folder import RunFolder

Run = Callable[..., tuple[int, str, str]]
NAMES = ["$x^2$", r"\x", "a\nb", "中文", "100 %_&#", "\x1b[31m", "שלום", "n" * 200]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of one experiment and one of another, without a dev split."""
    records = [
        run_data(group="a", dev=()),
        run_data(group="a", dev=(), seed=1),
        run_data(group="b", dev=(), train_loss="0.5·cross-entropy + 0.5·KL"),
    ]
    return [write_run(tmp_path / f"run-{i}", record) for i, record in enumerate(records)]


def test_runs_without_a_dev_split_are_compared_on_validation(
    runs: list[Path], colakit: Run, tmp_path: Path
) -> None:
    code, out, err = colakit("plot", *runs, "--out", tmp_path / "figures", "--format", "svg", "--json")
    assert code == 0, err
    assert [Path(path).name for path in json.loads(out)["figures"]] == [
        *["curves.svg"] * 3,
        "overlay.svg",
        "comparison.svg",
    ]
    text = (tmp_path / "figures" / "comparison.svg").read_text()
    assert "validation: MCC" in text
    assert "Epoch and threshold were chosen on the sentences shown here." in text


def test_a_run_with_dev_and_one_without_are_compared_on_validation(
    runs: list[Path], colakit: Run, tmp_path: Path
) -> None:
    write_run(tmp_path / "dev", run_data(group="c"))
    code, _, err = colakit("plot", tmp_path / "dev", runs[0], "--out", tmp_path / "out", "--format", "svg")
    assert code == 0, err
    assert "validation: MCC" in (tmp_path / "out" / "comparison.svg").read_text()


def test_runs_on_different_sentences_are_not_compared(runs: list[Path], colakit: Run) -> None:
    folder = RunFolder(runs[1])
    labels, predictions = folder.read_predictions()["val"]
    write_predictions(folder, {"val": (1 - labels, predictions)})
    code, _, err = colakit("plot", *runs)
    assert code == 2
    assert "val: the runs were evaluated on different data" in err


def test_folders_may_have_any_name(colakit: Run, tmp_path: Path) -> None:
    data = [run_data(name, name) for name in NAMES]
    runs = [write_run(tmp_path / name, run) for name, run in zip(NAMES, data, strict=True)]
    code, _, err = colakit("plot", *runs, "--out", tmp_path / "figures $1$")
    assert code == 0, err
    written = sorted(path.name for path in (tmp_path / "figures $1$").iterdir())
    assert written == ["comparison.png", "overlay.png"]
    assert all((run / "plots" / "curves.png").is_file() for run in runs)
    shutil.rmtree(tmp_path / NAMES[0] / "plots")
    code, _, err = colakit("plot", runs[0], "--format", "pdf")
    assert code == 0, err
    assert (runs[0] / "plots" / "curves.pdf").is_file()


def test_runs_without_a_common_split_are_refused(runs: list[Path], colakit: Run) -> None:
    folder = RunFolder(runs[1])
    write_predictions(folder, {"other": folder.read_predictions()["val"]})
    code, _, err = colakit("plot", *runs)
    assert code == 2
    assert "the runs' predictions.json share no split" in err
