"""What saving a checkpoint costs: seconds, bytes, and steps of the same run for comparison.

    python benchmarks/checkpoints.py [BASE]        by default a tiny base that it makes

The disk is synced as in any run. Each line is the median over the saves of one run on the built-in corpus;
the share of the time is that of a run which saves at its evaluations, once an epoch, as runs do by default.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.toy import write_base

from colakit.cli.app import main
from colakit.storage.checkpoints import Checkpoints
from colakit.training.classifier_trainer import ClassifierTrainer
from colakit.training.trainer import Trainer

SAVES, EVERY = 8, 4  # checkpoints measured, steps between them


class EnoughError(Exception):
    """Ends a run once there is enough to measure."""


def measure(base: Path, method: str, out: Path) -> tuple[float, float, float, float, int]:
    """Return median seconds a save, the slowest, median seconds a step, the share saved, and bytes."""
    saves: list[float] = []
    steps: list[float] = []
    save, after_step = Trainer._save, Trainer._after_step
    ended = time.perf_counter()
    epoch = 0

    def timed_save(self: Trainer) -> None:
        began = time.perf_counter()
        save(self)
        saves.append(time.perf_counter() - began)

    def timed_step(self: ClassifierTrainer, *arguments: Any) -> None:
        nonlocal ended, epoch
        epoch = self.steps_per_epoch
        steps.append(time.perf_counter() - ended)
        after_step(self, *arguments)
        if len(saves) == SAVES:
            raise EnoughError
        ended = time.perf_counter()

    Trainer._save, Trainer._after_step = timed_save, timed_step  # type: ignore[method-assign]
    command = ["finetune", "--base", str(base), "--data", "builtin", "--quiet", "--out", str(out)]
    try:
        every = f"finetune.save_every_steps={EVERY}"
        main([*command, "--set", every, "--set", f"finetune.method={method}"])
    except EnoughError:
        pass
    finally:
        Trainer._save, Trainer._after_step = save, after_step  # type: ignore[method-assign]
    size = sum(file.stat().st_size for file in Checkpoints(out / "checkpoints").paths()[0].iterdir())
    a_save, a_step = statistics.median(saves), statistics.median(steps[1:])
    return a_save, max(saves), a_step, a_save / (a_save + epoch * a_step), size


def run() -> None:
    """Measure an adapter and all weights of the base, and print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "base"
        if not base.exists():
            write_base(base, steps=1)
        print(
            "| trained | MB a checkpoint | s a save, median | slowest | s a step | % of a run |\n"
            "|---|---:|---:|---:|---:|---:|"
        )
        for method in ("lora", "full"):
            save, slowest, step, share, size = measure(base, method, folder / method)
            times = f"{save:.3f} | {slowest:.3f} | {step:.3f}"
            print(f"| {method} | {size / 1e6:.1f} | {times} | {100 * share:.2f} |")


if __name__ == "__main__":
    run()
