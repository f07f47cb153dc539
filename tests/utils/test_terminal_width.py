"""Tables and progress in terminals of 80 and 120 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from colakit.utils.console import Reporter, _ProgressBar, print_error
from colakit.utils.table_layout import fit_table

COLUMNS = ["student", "teacher", "seeds", "agreement %", "kappa", "MCC kept %", "parameters", "teacher's"]
ROW = ["distill (lstm)", "finetune (GPT-2, rank 8)", "3", "85.1 ± 0.2", "0.61 ± 0.01", "62 [51, 73]"]
ROW += ["1,234,567", "124,439,808"]
NOTE = "loss 0.432, MCC 0.234, accuracy 71.2 %, best val: MCC 0.321, accuracy 72.1 %, epoch 12"


def words(text: str) -> set[str]:
    return set(re.sub("[┏━┳┓┃┡╇┩│└─┴┘]", " ", text).split())


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_table_never_breaks_a_word(
    num_rows: int, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    Reporter().table("dev: students", COLUMNS, [ROW] * num_rows)
    out = capsys.readouterr().out
    shown = words(out.replace(":", " "))
    assert {word for cell in [*COLUMNS, *ROW] for word in cell.split()} <= shown
    assert max(map(len, out.splitlines())) <= width
    assert "[51, 73]" in out


def test_a_table_is_folded_then_turned_then_given_up() -> None:
    columns, rows = ["name", "value"], [["one two", "1,234"], ["three", "5 [4, 6]"]]
    assert fit_table(columns, rows, 40) == ([columns, *rows], [7, 8])
    folded = [["one\ntwo", "1,234"], ["three", "5\n[4, 6]"]]  # an interval stays whole
    assert fit_table(columns, rows, 19) == ([columns, *folded], [6, 6])
    turned = fit_table(["a", "b", "c", "d"], [["1", "2", "3", "4"]], 16)
    assert turned == ([["a", "1"], ["b", "2"], ["c", "3"], ["d", "4"]], [1, 1])
    assert fit_table(columns, rows, 9) is None


@pytest.mark.parametrize("width", [80, 120])
def test_progress_shows_bar_steps_and_time_before_metrics(width: int) -> None:
    reporter, screen = Reporter(), io.StringIO()
    reporter._messages = Console(file=screen, force_terminal=True, width=width, color_system=None)
    reporter.stage = "4 of 5: "
    with reporter.progress("labelling with teachers, out_of_domain_dev", 2400) as bar:
        bar.advance(1200, note=NOTE)
    (line,) = {
        line for line in re.split(r"[\r\n]|\x1b\[[^A-Za-z]*[A-Za-z]", screen.getvalue()) if "1200" in line
    }
    assert len(line) <= width
    assert line.startswith("4 of 5: labelling")
    assert "━━━" in line
    assert "1200/2400" in line
    assert re.search(r"[\d-]:[\d-]{2}:[\d-]{2}", line)
    assert ("loss 0.432, MCC 0.234" in line) == (width == 120)
    assert line.rstrip().endswith("…")


def test_progress_of_a_training_shows_loss_and_mcc_at_80_columns() -> None:
    reporter, screen = Reporter(), io.StringIO()
    reporter._messages = Console(file=screen, force_terminal=True, width=80, color_system=None)
    reporter.stage = "4 of 5: "
    with reporter.progress("training", 2400) as bar:
        assert isinstance(bar, _ProgressBar)
        bar.started -= 60  # seconds
        bar.advance(1200, note=NOTE)
    assert "loss 0.432, MCC 0.234" in screen.getvalue()


def test_a_note_ends_after_a_whole_word() -> None:
    reporter, screen = Reporter(), io.StringIO()
    reporter._messages = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with reporter.progress("training", 10) as bar:
        bar.advance(5, note=NOTE)
    shown = screen.getvalue().partition("loss 0.432")[2].partition("…")[0]
    assert NOTE.startswith(f"loss 0.432{shown.rstrip()}")
    assert NOTE[len(f"loss 0.432{shown.rstrip()}")] == " "


LONG = "--set finetune.lr: must be above 0 (got -1), set in a folder\n" + "word " * 30 + "/path" * 30


@pytest.mark.parametrize(
    "show", [Reporter.say, Reporter.warn, Reporter.heading, Reporter.result, print_error]
)
def test_lines_break_between_words_on_a_terminal_and_nowhere_in_a_pipe(
    show: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown() -> list[str]:
        show(LONG, LONG) if show is print_error else show(Reporter(), LONG)
        return "".join(capsys.readouterr()).splitlines()

    monkeypatch.setenv("COLUMNS", "30")
    assert set(LONG.splitlines()) & set(shown())
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown()]
    assert set(LONG.split()) <= {word for line in lines for word in line.split()}
    assert all(len(line) <= 30 or " " not in line for line in lines)
