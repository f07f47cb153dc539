"""Cost of saving a checkpoint: seconds, megabytes, and share of a run's time.

    python benchmarks/checkpoints.py [BASE]        default: a tiny base with random weights

Each line is the median over the saves of one run on the built-in corpus, with everything synced to disk. The
share of the time is that of a run with the default settings, which saves once an epoch.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workspaces import make_workspace

from colakit.cli.app import main as colakit
from colakit.storage.checkpoints import Checkpoints
from colakit.training.classifier_trainer import ClassifierTrainer
from colakit.training.trainer import Trainer

NUM_SAVES, STEPS_BETWEEN = 8, 4


class MeasuredError(Exception):
    """Ends a run after `NUM_SAVES` saves."""


def main() -> None:
    """Measure LoRA and full fine-tuning, and print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = Path(sys.argv[1]) if len(sys.argv) > 1 else make_workspace(folder, "tiny").base
        print(
            "| trained | MB a checkpoint | s a save, median | slowest | s a step | % of a run |\n"
            "|---|---:|---:|---:|---:|---:|"
        )
        for method in ("lora", "full"):
            print(f"| {method} | {' | '.join(measure(base, method, folder / method))} |")


def measure(base: Path, method: str, out: Path) -> list[str]:
    """Fine-tune until `NUM_SAVES` checkpoints are saved; return the cells of a row."""
    saves: list[float] = []
    steps: list[float] = []
    save, after_step = Trainer._save, Trainer._after_step
    step_began = time.perf_counter()
    steps_per_epoch = 0

    def timed_save(self: Trainer) -> None:
        began = time.perf_counter()
        save(self)
        saves.append(time.perf_counter() - began)

    def timed_step(self: ClassifierTrainer, *arguments: Any) -> None:
        nonlocal step_began, steps_per_epoch
        steps_per_epoch = self.steps_per_epoch
        steps.append(time.perf_counter() - step_began)
        after_step(self, *arguments)
        if len(saves) == NUM_SAVES:
            raise MeasuredError
        step_began = time.perf_counter()

    Trainer._save, Trainer._after_step = timed_save, timed_step  # type: ignore[method-assign]
    command = ["finetune", "--base", str(base), "--data", "builtin", "--quiet", "--out", str(out)]
    settings = (f"finetune.save_every_steps={STEPS_BETWEEN}", f"finetune.method={method}")
    try:
        colakit([*command, *(word for setting in settings for word in ("--set", setting))])
    except MeasuredError:
        pass
    finally:
        Trainer._save, Trainer._after_step = save, after_step  # type: ignore[method-assign]
    size = sum(file.stat().st_size for file in Checkpoints(out / "checkpoints").paths()[0].iterdir())
    a_save, a_step = statistics.median(saves), statistics.median(steps[1:])
    share = a_save / (a_save + steps_per_epoch * a_step)
    return [f"{size / 1e6:.1f}", *(f"{s:.3f}" for s in (a_save, max(saves), a_step)), f"{100 * share:.2f}"]


if __name__ == "__main__":
    main()
