"""Stand-ins for trainings, so that a sweep of many trials takes seconds, and the death of its processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

TRAINING = """
import json, math, os, pathlib, sys, threading, time

def follow_parent():  # as colakit's stop_with_parent
    while os.read(0, 1):
        pass
    os._exit(143)

threading.Thread(target=follow_parent, daemon=True).start()
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
values = dict(word.split("=", 1) for flag, word in zip(words, words[1:]) if flag == "--set")
lr, rank = float(values["finetune.lr"]), int(values["lora.rank"])
mcc = 1 / (1 + abs(math.log10(lr) + 3)) - 0.01 * rank
out.mkdir(parents=True, exist_ok=True)
metrics, log = out / "metrics.jsonl", (out / "log").open("a", buffering=1)
log.write("again\\n" if (out / "summary.json").exists() else "start\\n")
if pathlib.Path("fail").exists():
    print("error: " + pathlib.Path("fail").read_text(), file=sys.stderr)
    sys.exit(int(pathlib.Path("fail-code").read_text()))
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(done + 1, 6):
    time.sleep(float(os.environ.get("EPOCH_SECONDS", "0.05")))
    scores = {"accuracy": 0.5, "mcc": mcc * epoch / 5}
    val = {**scores, "loss": 1.0, "argmax": scores}
    record = {"event": "evaluation", "step": epoch, "epoch": float(epoch), "train": {"loss": 1.0}, "val": val}
    with metrics.open("a") as file:
        file.write(json.dumps(record) + "\\n")
summary = {"command": "finetune", "splits": {"val": {"mcc": mcc}}, "threads": os.environ["OMP_NUM_THREADS"]}
part = out / "summary.part"
part.write_text(json.dumps(summary))
part.rename(out / "summary.json")
log.write("finished\\n")
"""

CONFIG = """
base: builtin
data: {{splits: {{train: {train}}}}}
sweep:
  space:
    finetune.lr: {{low: 1e-5, high: 1e-1, log: true}}
    lora.rank: [2, 4, 8]
  sampler: {sampler}
  trials: {trials}
  jobs: 2
  heartbeat_seconds: 1
"""


def write_stand_in(folder: Path, *, trials: int = 6, sampler: str = "random") -> Path:
    """Make `python -m colakit` in `folder` a training of a tenth of a second; return the YAML of a sweep.

    Its data have no dev, so that the winner, which is no model, is not evaluated.
    """
    package = folder / "colakit"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(TRAINING)
    train = folder / "train.tsv"
    rows = [f"toy\t{number % 2}\t\tSentence {number} is short.\n" for number in range(40)]
    train.write_text("".join(rows), encoding="utf-8")
    config = folder / "sweep.yaml"
    config.write_text(CONFIG.format(train=train, trials=trials, sampler=sampler), encoding="utf-8")
    return config


def outcome(folder: Path) -> list[Any]:
    """Return index, state, value and settings of the trials of a finished sweep."""
    summary = json.loads((folder / "summary.json").read_text())
    return [(each["index"], each["state"], each["value"], each["params"]) for each in summary["trials"]]


def logs(folder: Path) -> dict[str, list[str]]:
    """Return what the stand-in of each trial wrote: start, finished; again if it was finished before."""
    return {path.parent.name: path.read_text().split() for path in folder.glob("trials/*/log")}


def descendants(process: int) -> list[int]:
    """Return the processes below a process, also in other sessions."""
    below = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, path.read_text(encoding="ascii").split()):
            below += [child, *descendants(child)]
    return below


def kill(process: int, *, all_below: bool) -> None:
    """Kill a process, and at once those below it, with SIGKILL."""
    below = descendants(process) if all_below else []
    os.kill(process, signal.SIGKILL)
    for child in below:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
