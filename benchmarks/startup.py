"""How long it takes until something happens: whole processes, from their start to their end.

    python benchmarks/startup.py [--repeats N] [--out FILE]

`colakit --help`, and one sentence through `colakit predict` with a student, warm: run once before. Beside
them, what no Python program with torch can go below, and one sentence through transformers' pipeline.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference import write_student
from measuring import Figure, Table, Way, colakit, compare, in_turn, report, run_process
from worlds import World, make_world

SECONDS = Figure("seconds", "s")
HELP, PREDICT = "colakit --help", "colakit predict, one sentence, student"
SENTENCE = "The cat that the dogs chase sleeps.\n"
PIPELINE = """
import sys
from transformers import AutoTokenizer, GPT2ForSequenceClassification, TextClassificationPipeline
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = GPT2ForSequenceClassification.from_pretrained(sys.argv[1], pad_token_id=tokenizer.eos_token_id)
print(TextClassificationPipeline(model=model, tokenizer=tokenizer)(sys.argv[2]))
"""


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tables = [Startup(make_world(Path(name), "small"), Path(name)).table(arguments.repeats)]
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Startup:
    """Short commands."""

    world: World
    scratch: Path

    def table(self, repeats: int) -> Table:
        """Run every command once, then all in turn, and return their times."""
        student = write_student(self.world.base, self.scratch / "student.pt")
        predict = colakit("predict", "--model", student, "--device", "cpu")
        pipeline = [sys.executable, "-c", PIPELINE, self.world.base, SENTENCE.strip()]
        ways = [
            self.way(HELP, colakit("--help"), None),
            self.way("python, which does nothing", [sys.executable, "-c", "pass"], HELP),
            self.way(PREDICT, predict, None),
            self.way("python, which imports torch", [sys.executable, "-c", "import torch"], PREDICT),
            self.way("transformers' pipeline, one sentence, a small GPT-2", pipeline, PREDICT),
        ]
        for way in ways:
            way.run()
        aims = f"{HELP} below 0.3 s, {PREDICT} below 1.5 s"
        return compare("Start-up", ways, in_turn(ways, repeats), SECONDS, aims=aims)

    def way(self, name: str, command: list[object], beside: str | None) -> Way:
        """Return a command as a way; it reads one sentence, if it reads."""
        cache = self.scratch / "cache"
        return Way(name, "fp32", lambda: run_process(command, cache=cache, stdin=SENTENCE), beside)


if __name__ == "__main__":
    main()
