"""The path from a command to the optimizer step is short enough to read."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import colakit as package

PACKAGE = Path(package.__file__).parent
MAX_FRAMES = 6


def test_at_most_six_frames_from_the_command_to_the_optimizer_step(
    toy: Path, tmp_path: Path, colakit: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        frames = [
            frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)
        ]
        stacks.append([f"{Path(f.filename).relative_to(PACKAGE)}: {f.name}" for f in frames])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    options = ["--base", toy / "base", "--data", toy / "corpus", "--epochs", 1, "--out", tmp_path / "run"]
    code, _, err = colakit("finetune", *options)
    assert code == 0, err
    trained = [stack for stack in stacks if "training/estimate.py: plan_training" not in stack]
    print("\n".join(trained[0]))
    assert trained[0][-1] == "training/loop.py: train"
    assert len(trained[0]) <= MAX_FRAMES
