"""Runs of several seeds or folds, trained in this process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from colakit import ColakitError
from colakit.api import run_set
from colakit.cli.app import main
from colakit.runtime.subprocesses import Child


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The children's commands, run in this process for speed."""
    started: list[Child] = []

    def run_side_by_side(commands: Sequence[Child], workers: object, on_line: object) -> list[str]:
        for child in commands:
            started.append(child)
            if code := main([*child.words, "--quiet"]):
                raise ColakitError(f"{child.name}: failed", hint="Repair it.", exit_code=code)
        return [""] * len(commands)

    monkeypatch.setattr(run_set, "run_side_by_side", run_side_by_side)
    return started
