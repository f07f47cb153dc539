"""All benchmarks in one run: training steps, whole commands, distillation, inference, start-up.

    python benchmarks/suite.py [--scale quick|full|smoke] [--parts NAME…] [--data CORPUS] [--out FILE]

`quick` takes minutes: steps at GPT-2 small's size, whole commands with a small base and 1,000 sentences.
`full` takes hours on two cores: everything at GPT-2 small's size, on the whole corpus. `smoke` only shows
that every part runs. The default corpus is CoLA if it lies beside the checkout, else the built-in one. A GPU
is used if there is one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from commands import Commands
from distilling import Distilling
from finetuning import Finetuning
from harness import Table, make_parser, report
from inference import Inference, Load
from pretraining import SHAPE, Pretraining
from startup import Startup
from student_steps import StudentSteps
from workspaces import LLAMA_SHAPES, SHAPES, make_workspace, random_examples, real_cola, write_random_gpt2

from colakit.models.rnn.config import RNNConfig

STEPS_ON_GPU = 240  # about an epoch of CoLA in batches of 32; a step takes milliseconds


@dataclass(frozen=True)
class Scale:
    """Sizes of the measured work.

    Attributes:
        shape: size of the base for steps and inference.
        batch_sizes: of steps; whole commands use the first.
        command_shape: size of the base for whole commands.
        num_sentences: size of their train split; None is all.
        windows: windows of text a pre-training step.
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
    """Measure the parts, print their tables, and write them as JSON."""
    parser = make_parser(__doc__, "suite")
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--data", type=Path, help="corpus; default: CoLA beside the checkout, else the built-in one"
    )
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
    """Measure fine-tuning steps."""
    base = write_random_gpt2(scratch / "base", SHAPES[scale.shape])
    examples = random_examples(data, SHAPES[scale.shape].vocab_size)
    benchmarks = [Finetuning(base, examples, scale.steps, size, scratch) for size in scale.batch_sizes]
    return [table for benchmark in benchmarks for table in benchmark.tables(scale.repeats)]


def llama(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure fine-tuning steps at the size of SmolLM2-135M."""
    shape = LLAMA_SHAPES[scale.shape]
    base, examples = write_random_gpt2(scratch / "base", shape), random_examples(data, shape.vocab_size)
    name = "Fine-tuning SmolLM2-135M's shape"
    benchmark = Finetuning(base, examples, scale.steps, scale.batch_sizes[0], scratch, name)
    return benchmark.tables(scale.repeats)


def pretraining(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure pre-training steps."""
    base = write_random_gpt2(scratch / "base", SHAPE)
    return [Pretraining(base, scale.steps, scale.windows).table(scale.repeats)]


def commands(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure whole fine-tuning commands."""
    workspace = make_workspace(scratch, scale.command_shape, data=data, num_sentences=scale.num_sentences)
    return Commands(workspace, scale.epochs, scale.batch_sizes[0], scratch).tables(scale.command_repeats)


def students(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure a student's training steps."""
    config = RNNConfig(SHAPES[scale.shape].vocab_size)
    examples = random_examples(data, config.vocab_size)
    return [StudentSteps(config, examples, scale.student_steps, 64).table(scale.repeats)]


def distilling(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure whole distillation commands."""
    workspace = make_workspace(scratch, scale.command_shape, data=data, num_sentences=scale.num_sentences)
    return [Distilling(workspace, scale.student_epochs, scratch).table(scale.command_repeats)]


def inference(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure labelling by student and teacher."""
    workspace = make_workspace(scratch, scale.shape, data=data)
    return Inference(workspace, scratch, scale.load).tables(scale.repeats)


def startup(scale: Scale, data: Path | None, scratch: Path) -> list[Table]:
    """Measure the start-up of short commands."""
    workspace = make_workspace(scratch, scale.command_shape, num_sentences=scale.num_sentences)
    return [Startup(workspace, scratch).table(scale.repeats)]


PARTS: dict[str, Callable[[Scale, Path | None, Path], list[Table]]] = {
    "finetuning": finetuning,
    "llama": llama,
    "pretraining": pretraining,
    "commands": commands,
    "students": students,
    "distilling": distilling,
    "inference": inference,
    "startup": startup,
}

if __name__ == "__main__":
    main()
