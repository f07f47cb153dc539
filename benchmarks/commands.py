"""Time and peak memory of whole fine-tuning commands: `colakit finetune` and PEFT with the Trainer.

    python benchmarks/commands.py [--shape NAME] [--data CORPUS] [--sentences N] [--epochs N] [--out FILE]

Every command runs in a process of its own and is measured from start to exit: imports, reading, tokenising,
training, evaluating a validation split after every epoch and dev at the end, saving.

With `--layers-to-transform` both programs adapt those blocks only; colakit with all blocks is a further row.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import (
    PEAK_MEMORY,
    SECONDS,
    Table,
    Variant,
    auto_precision,
    colakit_command,
    compare,
    make_parser,
    report,
    run_alternating,
    run_command,
)
from workspaces import SHAPES, Workspace, make_workspace

COLAKIT = "colakit finetune"
TARGET = (
    "12 times the Trainer's defaults, 2.5 times its best flags, at GPT-2 small's size with bf16 matrix units"
)


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = make_parser(__doc__, "commands", data=None, sentences=None, epochs=3, batch_size=32, repeats=3)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="size of the base")
    parser.add_argument("--layers-to-transform", help="blocks to adapt, such as 6,7,8; default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        workspace = make_workspace(
            scratch, arguments.shape, data=arguments.data, num_sentences=arguments.sentences
        )
        benchmark = Commands(
            workspace, arguments.epochs, arguments.batch_size, scratch, arguments.layers_to_transform
        )
        tables = benchmark.tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Commands:
    """Commands that fine-tune one base on one corpus.

    Attributes:
        layers: comma-separated numbers of the adapted blocks; None is all.
    """

    workspace: Workspace
    epochs: int
    batch_size: int
    scratch: Path
    layers: str | None = None

    def tables(self, repeats: int) -> list[Table]:
        """Return the tables of time and memory."""
        variants = self.variants()
        measurements = run_alternating(variants, repeats)
        title = f"The whole command, {self.epochs} epochs of {len(self.workspace.sentences):,} sentences"
        if self.layers:
            title += f", blocks {self.layers}"
        target = "" if self.layers else TARGET
        return [
            compare(f"{title}: time", variants, measurements, SECONDS, reference=COLAKIT, target=target),
            compare(f"{title}: memory", variants, measurements, PEAK_MEMORY, reference=COLAKIT),
        ]

    def variants(self) -> list[Variant]:
        """Return the commands to compare."""
        best = auto_precision()
        layers = ["--layers-to-transform", self.layers] if self.layers else []
        trainer = [sys.executable, Path(__file__).with_name("peft_trainer.py"), *layers]
        colakit = colakit_command("finetune", "--quiet")

        def variant(name: str, precision: str, *command: object, reference: str | None = COLAKIT) -> Variant:
            return Variant(name, precision, partial(self.run, command), reference)

        variants = [
            variant("PEFT + Trainer, defaults", "fp32", *trainer),
            variant(f"PEFT + Trainer, {best}, grouped by length", best, *trainer, "--best", best),
            variant(COLAKIT, best, *colakit, *layers, reference=None),
        ]
        return [*variants, *([variant(f"{COLAKIT}, all blocks", best, *colakit)] if layers else [])]

    def run(self, command: tuple[object, ...]) -> dict[str, float]:
        """Run a command with an empty cache."""
        out = Path(tempfile.mkdtemp(dir=self.scratch))
        words = ["--base", self.workspace.base, "--data", self.workspace.data, "--epochs", self.epochs]
        words += ["--batch-size", self.batch_size, "--out", out / "run"]
        return run_command([*command, *words], cache=out / "cache")


if __name__ == "__main__":
    main()
