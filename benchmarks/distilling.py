"""Distilling with logits that are asked for once, beside a teacher that answers at every step.

    python benchmarks/distilling.py [--shape NAME] [--data CORPUS] [--sentences N] [--epochs N] [--out FILE]

`colakit distill` runs as a whole command, once with nothing in its cache and once more with the teacher's
logits in it; beside it, in processes of their own, one epoch with the teacher in the loop: colakit's model as
it computes everywhere else, and the same adapter through PEFT in fp32, on batches padded to their longest.
All learn from the sentences of train alone: with more of them, who asks at every step asks more often.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measuring import Figure, Table, Way, colakit, compare, in_turn, precision_of, report, run_process
from worlds import World, command_parser, make_world

SECONDS = Figure("seconds", "s")
AIMS = "no slower than one epoch with the teacher in the loop"


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = command_parser((__doc__ or "").splitlines()[0], "distilling", epochs=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        world = make_world(scratch, arguments.shape, data=arguments.data, num_sentences=arguments.sentences)
        tables = [Distilling(world, arguments.epochs, scratch).table(arguments.repeats)]
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Distilling:
    """Distilling one teacher, which it tunes first."""

    world: World
    epochs: int
    scratch: Path

    @property
    def teacher(self) -> Path:
        """The run folder of the teacher."""
        return self.scratch / "teacher"

    def table(self, repeats: int) -> Table:
        """Tune the teacher, run all ways in turn, and return their times."""
        words = ["--base", self.world.base, "--data", self.world.data, "--epochs", 1, "--quiet"]
        run_process(colakit("finetune", *words, "--out", self.teacher), cache=self.scratch / "teacher-cache")
        self.distilled(self.scratch / "full-cache", epochs=1)
        ways = self.ways()
        title = f"Distilling {len(self.world.sentences):,} sentences, the whole command"
        return compare(title, ways, in_turn(ways, repeats), SECONDS, ours="colakit distill", aims=AIMS)

    def ways(self) -> list[Way]:
        """Return what is compared; the student is computed in fp32, the precision told is the teacher's."""
        ours = f"colakit distill, {self.epochs} epochs"
        best = precision_of()
        return [
            Way(ours, best, self.ours),
            Way(f"{ours}, once more (logits in the cache)", best, self.again, ours),
            Way("teacher in the loop, 1 epoch: colakit's", best, self.loop("colakit"), ours),
            Way("teacher in the loop, 1 epoch: PEFT's", "fp32", self.loop("peft"), ours),
        ]

    def ours(self) -> dict[str, float]:
        """Distil with nothing in the cache."""
        return self.distilled(Path(tempfile.mkdtemp(dir=self.scratch)), self.epochs)

    def again(self) -> dict[str, float]:
        """Distil another student of the same teacher."""
        return self.distilled(self.scratch / "full-cache", self.epochs)

    def distilled(self, cache: Path, epochs: int) -> dict[str, float]:
        """Run `colakit distill` with its cache in a folder."""
        words = ["--teacher", self.teacher, "--data", self.world.data, "--epochs", epochs, "--quiet"]
        words += ["--set", "transfer.size=0", "--out", tempfile.mkdtemp(dir=self.scratch)]
        return run_process(colakit("distill", *words), cache=cache)

    def loop(self, whose: str) -> Callable[[], dict[str, float]]:
        """Return what runs one epoch with the teacher in the loop."""

        def run() -> dict[str, float]:
            script = Path(__file__).with_name("teacher_loop.py")
            words = ["--teacher", self.teacher, "--data", self.world.data, "--whose", whose]
            return run_process([sys.executable, script, *words], cache=self.scratch / "loop-cache")

        return run


if __name__ == "__main__":
    main()
