"""Time of distillation: cached teacher logits, and a teacher that runs at every step.

    python benchmarks/distilling.py [--shape NAME] [--data CORPUS] [--sentences N] [--epochs N] [--out FILE]

`colakit distill` is measured as a whole command, with an empty cache and with the teacher's logits cached. It
is compared with one epoch of `teacher_loop.py`, which runs the teacher at every step: with colakit's model,
and with PEFT in fp32 on batches padded to their longest sentence. All train on the train split only; a
transfer set would make the teacher in the loop slower still.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import (
    SECONDS,
    Table,
    Variant,
    auto_precision,
    colakit_command,
    make_parser,
    measure,
    report,
    run_command,
)
from workspaces import SHAPES, Workspace, make_workspace

TARGET = "no slower than one epoch with the teacher in the loop"


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = make_parser(__doc__, "distilling", data=None, sentences=None, epochs=10, repeats=3)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="size of the base")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        workspace = make_workspace(
            scratch, arguments.shape, data=arguments.data, num_sentences=arguments.sentences
        )
        tables = [Distilling(workspace, arguments.epochs, scratch).table(arguments.repeats)]
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Distilling:
    """Distillation of one teacher, which `table` fine-tunes first."""

    workspace: Workspace
    epochs: int
    scratch: Path

    @property
    def teacher(self) -> Path:
        """Run folder of the teacher."""
        return self.scratch / "teacher"

    def table(self, repeats: int) -> Table:
        """Return the table of times."""
        data = ["--data", self.workspace.data]
        command = colakit_command("finetune", "--base", self.workspace.base, *data, "--epochs", 1, "--quiet")
        run_command([*command, "--out", self.teacher], cache=self.scratch / "teacher-cache")
        full_cache = self.scratch / "full-cache"
        self.distill(full_cache, epochs=1)
        reference = f"colakit distill, {self.epochs} epochs"
        precision = auto_precision()  # of the teacher; the student is computed in fp32
        variants = [
            Variant(reference, precision, self.distill),
            Variant(f"{reference}, logits cached", precision, partial(self.distill, full_cache), reference),
            Variant(
                "colakit's teacher in the loop, 1 epoch", precision, partial(self.loop, "colakit"), reference
            ),
            Variant("PEFT's teacher in the loop, 1 epoch", "fp32", partial(self.loop, "peft"), reference),
        ]
        title = f"Distilling {len(self.workspace.sentences):,} sentences, the whole command"
        return measure(title, variants, repeats, SECONDS, reference="colakit distill", target=TARGET)

    def distill(self, cache: Path | None = None, epochs: int | None = None) -> dict[str, float]:
        """Run `colakit distill`; the default cache is empty."""
        words = ["--teacher", self.teacher, "--data", self.workspace.data, "--epochs", epochs or self.epochs]
        words += ["--set", "transfer.size=0", "--quiet", "--out", tempfile.mkdtemp(dir=self.scratch)]
        empty = Path(tempfile.mkdtemp(dir=self.scratch))
        return run_command(colakit_command("distill", *words), cache=cache or empty)

    def loop(self, implementation: str) -> dict[str, float]:
        """Run one epoch with the teacher in the loop."""
        script = Path(__file__).with_name("teacher_loop.py")
        words = ["--teacher", self.teacher, "--data", self.workspace.data, "--implementation", implementation]
        return run_command([sys.executable, script, *words], cache=self.scratch / "loop-cache")


if __name__ == "__main__":
    main()
