"""Start-up time of short commands, measured as whole processes.

    python benchmarks/startup.py [--repeats N] [--out FILE]

`colakit --help` and `colakit predict` of one sentence with a student, each after one unmeasured run. They are
compared with the minimum for any Python program with torch, and with transformers' pipeline.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import SECONDS, Table, Variant, colakit_command, make_parser, measure, report, run_command
from workspaces import Workspace, make_workspace, save_random_student

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
    arguments = make_parser(__doc__, "startup", repeats=5).parse_args()
    with tempfile.TemporaryDirectory() as name:
        tables = [Startup(make_workspace(Path(name), "small"), Path(name)).table(arguments.repeats)]
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Startup:
    """Short commands."""

    workspace: Workspace
    scratch: Path

    def table(self, repeats: int) -> Table:
        """Run every command once unmeasured; return the table of times."""
        student = save_random_student(self.workspace.base, self.scratch / "student")
        predict = colakit_command("predict", "--model", student, "--device", "cpu")
        pipeline = [sys.executable, "-c", PIPELINE, self.workspace.base, SENTENCE.strip()]
        variants = [
            self.variant(HELP, colakit_command("--help")),
            self.variant("python -c pass", [sys.executable, "-c", "pass"], HELP),
            self.variant(PREDICT, predict),
            self.variant('python -c "import torch"', [sys.executable, "-c", "import torch"], PREDICT),
            self.variant("transformers' pipeline, one sentence, a small GPT-2", pipeline, PREDICT),
        ]
        for variant in variants:
            variant.run()
        target = f"{HELP} below 0.3 s, {PREDICT} below 1.5 s"
        return measure("Start-up", variants, repeats, SECONDS, target=target)

    def variant(self, name: str, command: list[object], reference: str | None = None) -> Variant:
        """Return a command with one sentence on its standard input."""
        cache = self.scratch / "cache"
        return Variant(name, "fp32", lambda: run_command(command, cache=cache, stdin=SENTENCE), reference)


if __name__ == "__main__":
    main()
