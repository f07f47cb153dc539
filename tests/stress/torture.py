"""Kills runs, resumes them, and compares every byte of their output with an uninterrupted run.

    python tests/stress/torture.py --kills 500        `make torture`

One process imports everything and forks a child for each run, because importing torch takes longer than a
run. Half of the kills come at a random time. The others hit a given write call, which the child counts
itself; where it writes a file, in the middle of the bytes. `test_kills.py` is the short form.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as pytest has it

from support.killing import BEGIN, END, STARTING, WRITING, Child, TwoProcesses
from support.toy import ToyGrammar, write_base, write_corpus

from colakit.cli.app import main
from colakit.storage.checkpoints import Checkpoints

MAY_DIFFER = {
    "seconds",
    "stages",
    "peak_memory_mib",
    "origins",  # a resumed run takes the settings of its folder
    "examples_per_second",
    "tokens_per_second",
    "sha256",
    "command_line",
    "working_folder",
    "git_commit",
}
MAX_KILLS = 5  # of one run


Moment = tuple["int | None", "float | None"]
"""Number of the write call to die at, or seconds until the kill."""


@dataclass(frozen=True)
class Kill:
    """A kill: its phase, and whether the process had resumed a run."""

    resuming: bool
    phase: int


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its duration, write calls and output files.

    `writes` also contains the marks `BEGIN` and `END` around each checkpoint.
    """

    seconds: float
    writes: list[str]
    output: dict[str, bytes]

    @property
    def num_writes(self) -> int:
        return len([name for name in self.writes if name not in (BEGIN, END)])

    @property
    def last_calls(self) -> range:
        """Numbers of the write calls of the last checkpoint and of the results after it."""
        begins = max(i for i, name in enumerate(self.writes) if name == BEGIN)
        before = len([name for name in self.writes[:begins] if name not in (BEGIN, END)])
        return range(before + 1, self.num_writes + 1)


# -- commands


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write a tiny base, corpus, text and teacher; return the command lines by name."""
    common = ["--device", "cpu", "--precision", "fp32", "--quiet", "--set", f"cache={folder / 'cache'}"]
    data = [*common, "--base", str(folder / "base"), "--data", str(folder / "corpus"), "--batch-size", "32"]
    often = ("log_every=1", "save_every_steps=2")
    tune = [f"finetune.{setting}" for setting in (*often, "epochs=3", "base_dropout=0.1")]
    learn = [f"student_training.{setting}" for setting in (*often, "epochs=3")]
    read = [f"pretrain.{setting}" for setting in (*often, *PRETRAIN)]
    student = [*data, "--hidden-size", "24", *(word for s in learn for word in ("--set", s))]
    kinds = ("transfer.size=0.5", "distill.hidden_weight=1", "student_training.lm_weight=0.1")
    all_losses = [word for s in (*kinds, "student.vocabulary=40") for word in ("--set", s)]
    lines = {
        "finetune": ["finetune", *data, "--rank", "2", *(word for s in tune for word in ("--set", s))],
        "distill": ["distill", *student, "--teacher", str(folder / "teacher"), *all_losses],
        "train-scratch": ["train-scratch", *student],
        "pretrain": [
            *("pretrain", str(folder / "text.txt"), *common),
            *(word for s in read for word in ("--set", s)),
        ],
    }
    if os.fork() == 0:  # keeps this process, which forks the runs, free of torch threads
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        write_corpus(folder / "corpus", sizes={"train": 240, "id_dev": 40, "ood_dev": 40})
        write_base(folder / "base", steps=20, width=32)
        grammar = ToyGrammar(0)
        texts = (" ".join(grammar.acceptable() for _ in range(20)) for _ in range(40))
        (folder / "text.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
        code = main([*lines["finetune"], "--out", str(folder / "teacher")])
        (folder / "modules.txt").write_text("\n".join(sys.modules), encoding="utf-8")
        os._exit(code)
    _, status = os.wait()
    assert status == 0, "fine-tuning the teacher failed"
    for module in (folder / "modules.txt").read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # some cannot be imported by name
            importlib.import_module(module)  # once here instead of in every child
    return lines


PRETRAIN = (
    *("vocab_size=300", "num_layers=1", "width=32", "num_heads=2", "num_positions=32", "tokens=12288"),
    *("batch_size=16", "micro_batch_size=8", "evaluate_every_steps=6", "compile=never", "val_fraction=0.1"),
    *("dropout=0.1", "evaluate_windows=8"),
)


def run_output(run: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a run, without the fields `MAY_DIFFER`."""
    files = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name in ("summary.json", "manifest.json", "environment.json"):
            plain = {name: value for name, value in json.loads(content).items() if name not in MAY_DIFFER}
            content = json.dumps(plain).encode()
        files[str(path.relative_to(run))] = content
    return files


def differences(run: Path, reference: Reference) -> list[str]:
    """Return the files in which a run differs from the uninterrupted one."""
    actual, expected = run_output(run), reference.output
    return sorted(name for name in {*actual, *expected} if actual.get(name) != expected.get(name))


def run_uninterrupted(arguments: list[str], folder: Path) -> Reference:
    """Run a command without kills."""
    out = folder / "whole"
    for _ in range(2):  # the first run fills the cache
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        code, _ = Child([*arguments, "--out", str(out)], folder / "whole.log").wait()
        assert code == 0, (folder / "whole.log").read_text()
    calls = json.loads((folder / "whole.calls").read_text(encoding="utf-8"))
    return Reference(time.monotonic() - began, calls, run_output(out))


def run_with_kills(arguments: list[str], out: Path, moments: Iterable[Moment]) -> Iterator[Kill]:
    """Run a command with `--resume auto` until it ends; yield each kill.

    Args:
        moments: of the attempted kills; the last process is not killed.
    """
    log = out.with_suffix(".log")
    for kill_at, delay in (*moments, (None, None)):
        resuming = bool(Checkpoints(out / "checkpoints").paths())
        code, phase = Child([*arguments, "--resume", "auto", "--out", str(out)], log, kill_at).wait(delay)
        if code == 0:
            return
        if code is not None:
            raise RuntimeError(f"exit code {code}:\n{log.read_text()[-2000:]}")
        yield Kill(resuming, phase)


def random_moments(chance: random.Random, reference: Reference) -> list[Moment]:
    """Return up to `MAX_KILLS` moments: half at a write call, a quarter within the first 40 % of the time."""

    def moment() -> Moment:
        if chance.random() < 0.5:
            return chance.randint(1, reference.num_writes), None
        return None, chance.uniform(0, reference.seconds * chance.choice((1, 0.4)))

    return [moment() for _ in range(chance.randint(1, MAX_KILLS))]


class Torture:
    """Kills runs of one command and counts the outcomes."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name, self.arguments, self.folder = name, arguments, folder
        self.count = Counter[str]()
        folder.mkdir()
        self.reference = run_uninterrupted(arguments, folder)

    def run(self, moments: Iterable[Moment]) -> None:
        """Run once with these kills, and compare the output."""
        out, count = self.folder / "run", self.count
        for kill in run_with_kills(self.arguments, out, moments):
            count["kills"] += 1
            count["inside a write"] += kill.phase == WRITING
            count["during a resume"] += kill.resuming and kill.phase == STARTING
        count["runs"] += 1
        if different := differences(out, self.reference):
            count["differences"] += 1
            print(f"{self.name}: differs in {', '.join(different)}", file=sys.stderr)
            shutil.copytree(out, self.folder / f"differs-{count['differences']}")
        shutil.rmtree(out)


def torture(
    lines: dict[str, list[str]], folder: Path, kills: int, seed: int, writes: Collection[str]
) -> dict[str, Counter[str]]:
    """Kill runs until there are `kills` in all; return counts by command.

    Args:
        writes: commands that are also killed at every write call from the last checkpoint on.
    """
    table = {}
    for position, (name, arguments) in enumerate(lines.items()):
        job, chance = Torture(name, arguments, folder / name), random.Random(f"{seed} {name}")
        target = kills * (position + 1) // len(lines) - kills * position // len(lines)
        while job.count["kills"] < target:
            job.run(random_moments(chance, job.reference))
        if name in writes:
            for call in job.reference.last_calls:
                job.run([(call, None)])
            job.count["last calls"] = len(job.reference.last_calls)
        table[name] = job.count
    return table


def torture_two(arguments: list[str], folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill one of two processes under torchrun shortly after a checkpoint; return counts."""
    chance, count = random.Random(seed), Counter(runs=1)
    folder.mkdir()
    TwoProcesses(arguments, folder / "whole").finish()
    reference = Reference(0, [], run_output(folder / "whole"))
    job = TwoProcesses(arguments, folder / "run-1")
    while count["kills"] < kills:
        if job.kill(chance.randrange(2), chance.uniform(0, 0.2)):
            count["kills"] += 1
            continue
        count["differences"] += bool(differences(folder / f"run-{count['runs']}", reference))
        count["runs"] += 1
        job = TwoProcesses(arguments, folder / f"run-{count['runs']}")
    job.finish()
    count["differences"] += bool(differences(folder / f"run-{count['runs']}", reference))
    return count


COLUMNS = ("runs", "kills", "inside a write", "during a resume", "differences")


def as_markdown(table: dict[str, Counter[str]]) -> str:
    """Return the counts as a table, with the total in the last row."""
    total = sum(table.values(), Counter[str]())
    rows = [("command", *COLUMNS), ("---", *("---:" for _ in COLUMNS))]
    for name, count in [*table.items(), ("all", total)]:
        cells = (str(count[c]) if c in count or c == "differences" else "-" for c in COLUMNS)
        rows.append((name, *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run() -> int:
    """Kill runs of every command and print the table; return 1 if any byte differs."""
    parser = argparse.ArgumentParser(description="Kill and resume runs; compare every byte of their output.")
    parser.add_argument("--kills", type=int, default=500, help="total number of kills")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    parser.add_argument("--writes", nargs="*", default=[], help="commands to kill at every last write call")
    parser.add_argument("--torchrun", type=int, default=0, help="additional kills of one of two processes")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    lines = prepare(folder)
    table = torture(lines, folder, options.kills, options.seed, options.writes)
    if options.torchrun:
        line = lines["finetune"]
        table["finetune, two processes"] = torture_two(line, folder / "two", options.torchrun, options.seed)
    if options.json:
        options.json.write_text(json.dumps(table), encoding="utf-8")
    print(as_markdown(table))
    print(f"\nseed {options.seed}, {time.monotonic() - began:.0f} s")
    if different := sum(count["differences"] for count in table.values()):
        print(f"{different} runs differ; see {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run())
