"""Kills runs, continues them, and compares every byte they leave with those of a run left alone.

    python tests/stress/torture.py --kills 500        `make torture`

A run takes less time than importing torch, so one process imports everything and forks a child a run: a real
process, ended by a real SIGKILL. Half of the kills come at a random moment. The others are aimed: the child
counts its calls that write, and kills itself at a given one (in the middle of the bytes, where it writes a
file). It stands beside the tests because its short form is one.
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

UNLIKE = {"seconds", "examples_per_second", "tokens_per_second", "sha256", "command_line", "git_commit"}
MOST_KILLS = 5  # in the life of one run


Moment = tuple["int | None", "float | None"]
"""Number of the writing call to die at, or seconds to live."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that ended a process: in which phase, and whether that process was continuing a run."""

    resuming: bool
    phase: int


@dataclass(frozen=True)
class Reference:
    """A run left alone: the seconds it took, its writing calls, and what it left.

    `BEGIN` and `END` stand in `writes` around each checkpoint; they are no calls.
    """

    seconds: float
    writes: list[str]
    left: dict[str, bytes]

    @property
    def num_writes(self) -> int:
        return len([name for name in self.writes if name not in (BEGIN, END)])

    @property
    def last_calls(self) -> range:
        """The numbers of the calls of the last save, and of all after it: those that write the result."""
        begins = max(i for i, name in enumerate(self.writes) if name == BEGIN)
        before = len([name for name in self.writes[:begins] if name not in (BEGIN, END)])
        return range(before + 1, self.num_writes + 1)


# -- what is run


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
    help_of_all_kinds = [word for s in (*kinds, "student.vocabulary=40") for word in ("--set", s)]
    lines = {
        "finetune": ["finetune", *data, "--rank", "2", *(word for s in tune for word in ("--set", s))],
        "distill": ["distill", *student, "--teacher", str(folder / "teacher"), *help_of_all_kinds],
        "train-scratch": ["train-scratch", *student],
        "pretrain": [
            *("pretrain", str(folder / "text.txt"), *common),
            *(word for s in read for word in ("--set", s)),
        ],
    }
    if os.fork() == 0:  # so that this process, which forks on, has run no thread of torch's
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
    assert status == 0, "the teacher could not be tuned"
    for module in (folder / "modules.txt").read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # some are no modules that can be imported by name
            importlib.import_module(module)  # here, once, and not in every child
    return lines


PRETRAIN = (
    *("vocab_size=300", "num_layers=1", "width=32", "num_heads=2", "num_positions=32", "tokens=12288"),
    *("batch_size=16", "micro_batch_size=8", "evaluate_every_steps=6", "compile=never", "val_fraction=0.1"),
    *("dropout=0.1", "evaluate_windows=8"),
)


def left_by(run: Path) -> dict[str, bytes]:
    """Return the bytes of all that a run left, but for times and the circumstances it was called in."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name in ("summary.json", "manifest.json", "environment.json"):
            plain = {name: value for name, value in json.loads(content).items() if name not in UNLIKE}
            content = json.dumps(plain).encode()
        found[str(path.relative_to(run))] = content
    return found


def differences(run: Path, reference: Reference) -> list[str]:
    """Return the files in which a run differs from the one left alone."""
    found, wanted = left_by(run), reference.left
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


def leave_alone(arguments: list[str], folder: Path) -> Reference:
    """Run a command to its end."""
    out = folder / "whole"
    for _ in range(2):  # the first fills the cache
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        code, _ = Child([*arguments, "--out", str(out)], folder / "whole.log").wait()
        assert code == 0, (folder / "whole.log").read_text()
    calls = json.loads((folder / "whole.calls").read_text(encoding="utf-8"))
    return Reference(time.monotonic() - began, calls, left_by(out))


def live(arguments: list[str], out: Path, moments: Iterable[Moment]) -> Iterator[Kill]:
    """Run a command with `--resume auto` until it ends, yielding each kill.

    Args:
        moments: of the kills to try; after them it is left alone.
    """
    log = out.with_suffix(".log")
    for aim, delay in (*moments, (None, None)):
        resuming = bool(Checkpoints(out / "checkpoints").paths())
        code, phase = Child([*arguments, "--resume", "auto", "--out", str(out)], log, aim).wait(delay)
        if code == 0:
            return
        if code is not None:
            raise RuntimeError(f"exit code {code}:\n{log.read_text()[-2000:]}")
        yield Kill(resuming, phase)


def at_random(chance: random.Random, reference: Reference) -> list[Moment]:
    """Return up to `MOST_KILLS` moments: half at a call that writes, a quarter early, as a run resumes."""

    def moment() -> Moment:
        if chance.random() < 0.5:
            return chance.randint(1, reference.num_writes), None
        return None, chance.uniform(0, reference.seconds * chance.choice((1, 0.4)))

    return [moment() for _ in range(chance.randint(1, MOST_KILLS))]


class Torture:
    """One command's runs: the one left alone, those that were killed, and what came of them."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name, self.arguments, self.folder = name, arguments, folder
        self.count = Counter[str]()
        folder.mkdir()
        self.reference = leave_alone(arguments, folder)

    def run(self, moments: Iterable[Moment]) -> None:
        """Live through these kills, and compare."""
        out, count = self.folder / "run", self.count
        for kill in live(self.arguments, out, moments):
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
    """Kill each command's runs until there were `kills` in all; return counts by command.

    Args:
        writes: commands to kill, besides, at every call that writes, from the last save on.
    """
    table = {}
    for position, (name, arguments) in enumerate(lines.items()):
        job, chance = Torture(name, arguments, folder / name), random.Random(f"{seed} {name}")
        wanted = kills * (position + 1) // len(lines) - kills * position // len(lines)
        while job.count["kills"] < wanted:
            job.run(at_random(chance, job.reference))
        if name in writes:
            for call in job.reference.last_calls:
                job.run([(call, None)])
            job.count["last calls"] = len(job.reference.last_calls)
        table[name] = job.count
    return table


def torture_two(arguments: list[str], folder: Path, kills: int, seed: int) -> Counter[str]:
    """The same under torchrun: one of two processes is killed a little after a save."""
    chance, count = random.Random(seed), Counter(runs=1)
    folder.mkdir()
    TwoProcesses(arguments, folder / "whole").finish()
    reference = Reference(0, [], left_by(folder / "whole"))
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
    """Return the table of counts, with a last row for all commands."""
    total = sum(table.values(), Counter[str]())
    rows = [("command", *COLUMNS), ("---", *("---:" for _ in COLUMNS))]
    for name, count in [*table.items(), ("all", total)]:
        told = (str(count[c]) if c in count or c == "differences" else "not told" for c in COLUMNS)
        rows.append((name, *told))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run() -> int:
    """Torture every command and print the table; 1 where a byte differs."""
    parser = argparse.ArgumentParser(description="Kill runs, continue them, compare every byte.")
    parser.add_argument("--kills", type=int, default=500, help="SIGKILLs in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--writes", nargs="*", default=[], help="commands to kill at every last call")
    parser.add_argument("--torchrun", type=int, default=0, help="further SIGKILLs, of one of two processes")
    parser.add_argument("--json", type=Path, help="file for the counts")
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
        print(f"{different} runs differ; they lie in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run())
