"""Plans: stages, estimates and progress titles."""

from __future__ import annotations

import pytest

from colakit.utils.console import Reporter
from colakit.utils.plan import Plan, Stage, describe_seconds


def test_a_plan_prints_its_stages_with_counts_and_seconds() -> None:
    stages = [Stage("a", steps=1200, estimate=61.4), Stage("b", sentences=9, estimate=0.0), Stage("c")]
    lines: list[str] = []
    Plan(stages, Reporter()).show(lines.append)
    assert lines == [
        "stage 1 of 3: a, 1,200 steps, about 61 s",
        "stage 2 of 3: b, 9 sentences, cached",
        "stage 3 of 3: c, time unknown",
    ]
    Plan(stages[:2], Reporter()).show(lines.append)
    assert lines[-1] == "estimated time: about 61 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "under 1 s"), (99, "about 99 s"), (2100, "about 35 min"), (9000, "about 2.5 h")],
)
def test_seconds_are_described_in_a_suitable_unit(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_progress_names_the_stage_and_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    plan = Plan([Stage("a"), Stage("b", estimate=2.0)], reporter)
    with plan.stage("b"), reporter.progress("sampling", 1) as bar:
        bar.advance()
    with plan.stage("not planned"), reporter.progress("else", 1) as bar:
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("2 of 2: sampling: 1/1")
    assert lines[1].startswith("else: 1/1")
    record = plan.as_dict()
    assert record["a"]["seconds"] is None
    assert record["b"]["seconds"] >= 0
    assert record["b"]["estimated_seconds"] == 2.0
