"""Whole commands: time and peak memory of tuning a base for some epochs, colakit beside PEFT + Trainer.

    python benchmarks/commands.py [--shape NAME] [--data CORPUS] [--sentences N] [--epochs N] [--out FILE]

Each runs in a process of its own, from its start to its end: imports, reading, tokenising, training,
measuring a held-out tenth after every epoch and dev at the end, saving.

With `--layers-to-transform` both sides adapt these blocks alone, and colakit with all stands beside.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measuring import Figure, Table, Way, colakit, compare, in_turn, precision_of, report, run_process
from worlds import World, command_parser, make_world

OURS = "colakit finetune"
SECONDS = Figure("seconds", "s")
MEMORY = Figure("peak_mib", "MiB of memory, at most")
AIMS = "as it comes 12 times, best flags 2.5 times, at GPT-2 small's size with bf16 matrix units"


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = command_parser((__doc__ or "").splitlines()[0], "commands", epochs=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers-to-transform", help="blocks to adapt, such as 6,7,8; default: all")
    arguments = parser.parse_args()
    layers = arguments.layers_to_transform
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        world = make_world(scratch, arguments.shape, data=arguments.data, num_sentences=arguments.sentences)
        commands = Commands(world, arguments.epochs, arguments.batch_size, scratch, layers)
        tables = commands.tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Commands:
    """Commands that tune one base on one corpus.

    Attributes:
        layers: numbers of the blocks that are adapted, between commas; None is all.
    """

    world: World
    epochs: int
    batch_size: int
    scratch: Path
    layers: str | None = None

    def tables(self, repeats: int) -> list[Table]:
        """Run all commands in turn; return their times and their memory."""
        ways = self.ways()
        found = in_turn(ways, repeats)
        title = f"The whole command, {self.epochs} epochs of {len(self.world.sentences):,} sentences"
        if self.layers:
            title += f", blocks {self.layers}"
        return [
            compare(f"{title}: time", ways, found, SECONDS, ours=OURS, aims="" if self.layers else AIMS),
            compare(f"{title}: memory", ways, found, MEMORY, ours=OURS),
        ]

    def ways(self) -> list[Way]:
        """Return the commands that are compared."""
        best = precision_of()
        found = [
            Way("PEFT + Trainer, as it comes", "fp32", self.rival(None), OURS),
            Way(f"PEFT + Trainer, {best}, grouped by length", best, self.rival(best), OURS),
            Way(OURS, best, partial(self.ours, self.some_layers())),
        ]
        if self.layers:
            found.append(Way(f"{OURS}, all blocks", best, partial(self.ours, []), OURS))
        return found

    def ours(self, layers: list[str]) -> dict[str, float]:
        """Run `colakit finetune`, with nothing in its cache."""
        out = Path(tempfile.mkdtemp(dir=self.scratch))
        words = [*self.shared(), *layers, "--out", out / "run", "--quiet"]
        return run_process(colakit("finetune", *words), cache=out / "cache")

    def some_layers(self) -> list[str]:
        """Return the arguments by which either side adapts some blocks alone."""
        return ["--layers-to-transform", self.layers] if self.layers else []

    def rival(self, best: str | None) -> Callable[[], dict[str, float]]:
        """Return what runs the rival's script; `best` as in `rivals.training_arguments`."""

        def run() -> dict[str, float]:
            out = Path(tempfile.mkdtemp(dir=self.scratch))
            words = [*self.shared(), *self.some_layers(), "--out", out, *(["--best", best] if best else [])]
            script = Path(__file__).with_name("rivals.py")
            return run_process([sys.executable, script, *words], cache=out / "cache")

        return run

    def shared(self) -> list[object]:
        """Return the arguments that both understand."""
        base, data = self.world.base, self.world.data
        return ["--base", base, "--data", data, "--epochs", self.epochs, "--batch-size", self.batch_size]


if __name__ == "__main__":
    main()
