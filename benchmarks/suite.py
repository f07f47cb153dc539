"""All benchmarks in one run: steps of all kinds, whole commands, memory, distilling, inference, start-up.

    python benchmarks/suite.py [--scale quick|full|smoke] [--parts NAME…] [--data CORPUS] [--out FILE]

`quick` takes minutes: GPT-2 small's true size where steps are measured, a small base and a thousand sentences
where whole commands are. `full` takes hours on two cores: GPT-2 small's size on the whole corpus. `smoke`
shows that everything runs, and measures nothing. The corpus is by default real CoLA where it lies beside the
checkout, else the built-in one. On a machine with a GPU, everything runs there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from commands import Commands
from distilling import Distilling
from finetuning import Finetuning, random_gpt2, read_examples
from inference import Inference, Load
from measuring import Table, report
from pretraining import SHAPE, Pretraining
from startup import Startup
from student_steps import StudentSteps
from worlds import SHAPES, make_world, real_cola

from colakit.models.rnn.config import RNNConfig

STEPS_ON_GPU = 240  # about an epoch of CoLA in steps of 32; they take milliseconds each


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        shape: of the base whose steps and inference are measured.
        batch_sizes: of steps; whole commands take the first.
        command_shape: of the base that whole commands tune.
        num_sentences: that they train on; None is all.
        command_repeats: of whole commands.
        windows: of text in a step of pre-training, of a base with the shape of the one that comes along.
    """

    shape: str = "gpt2"
    steps: int = 4
    batch_sizes: tuple[int, ...] = (32,)
    repeats: int = 3
    command_shape: str = "small"
    num_sentences: int | None = 1000
    command_repeats: int = 3
    epochs: int = 3
    windows: int = 128
    student_steps: int = 50
    student_epochs: int = 10
    load: Load = field(default_factory=Load)


SCALES = {
    "quick": Scale(),
    "full": Scale(
        steps=8,
        batch_sizes=(32, 128),
        repeats=5,
        command_shape="gpt2",
        num_sentences=None,
        command_repeats=1,
        load=Load(singles=1000, teacher=2048, student=65536, lines=1_000_000),
    ),
    "smoke": Scale(
        shape="tiny",
        steps=1,
        batch_sizes=(4,),
        repeats=1,
        command_shape="tiny",
        num_sentences=60,
        command_repeats=1,
        epochs=1,
        windows=2,
        student_steps=1,
        student_epochs=1,
        load=Load(singles=3, teacher=8, student=16, lines=50),
    ),
}


def main() -> None:
    """Measure all parts, print their tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--data", type=Path, help="corpus; default: CoLA beside the checkout, or the built-in one"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/suite.json"))
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    if torch.cuda.is_available() and arguments.scale != "smoke":
        scale = replace(scale, steps=STEPS_ON_GPU)
    data = arguments.data or (None if arguments.scale == "smoke" else real_cola())
    tables: list[Table] = []
    for name in arguments.parts:
        with tempfile.TemporaryDirectory() as scratch:
            tables += PARTS[name](scale, data, Path(scratch))
    report(tables, {**vars(arguments), "data": data or "builtin", **vars(scale)}, arguments.out)


def finetuning(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Steps of fine-tuning."""
    base = random_gpt2(scratch / "base", SHAPES[scale.shape])
    examples = read_examples(data, SHAPES[scale.shape].vocab_size)
    benches = [Finetuning(base, examples, scale.steps, size, scratch) for size in scale.batch_sizes]
    return [table for bench in benches for table in bench.tables(scale.repeats)]


def pretraining(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Steps of pre-training."""
    base = random_gpt2(scratch / "base", SHAPE)
    return [Pretraining(base, scale.steps, scale.windows).table(scale.repeats)]


def commands(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Whole commands that tune, with their memory."""
    world = make_world(scratch, scale.command_shape, data=data, num_sentences=scale.num_sentences)
    return Commands(world, scale.epochs, scale.batch_sizes[0], scratch).tables(scale.command_repeats)


def students(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Steps of a student's training."""
    config = RNNConfig(SHAPES[scale.shape].vocab_size)
    examples = read_examples(data, config.vocab_size)
    return [StudentSteps(config, examples, scale.student_steps, 64).table(scale.repeats)]


def distilling(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Whole commands that distil."""
    world = make_world(scratch, scale.command_shape, data=data, num_sentences=scale.num_sentences)
    return [Distilling(world, scale.student_epochs, scratch).table(scale.command_repeats)]


def inference(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Student and teacher, from one sentence to many."""
    world = make_world(scratch, scale.shape, data=data)
    return Inference(world, scratch, scale.load).tables(scale.repeats)


def startup(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Short commands."""
    world = make_world(scratch, scale.command_shape, num_sentences=scale.num_sentences)
    return [Startup(world, scratch).table(scale.repeats)]


PARTS: dict[str, Callable[[Scale, Path | None, Path], list[Table]]] = {
    "finetuning": finetuning,
    "pretraining": pretraining,
    "commands": commands,
    "students": students,
    "distilling": distilling,
    "inference": inference,
    "startup": startup,
}

if __name__ == "__main__":
    main()
