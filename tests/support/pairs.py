"""Minimal pairs of the toy grammar, and their files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

from support.toy import ToyGrammar

NUM_PAIRS = 60


def draw_pairs(count: int = NUM_PAIRS, seed: int = 5) -> list[dict[str, Any]]:
    """Return lines of a suite: sentences of the toy grammar, each beside the same with one fault."""
    grammar = ToyGrammar(seed)
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        good = grammar.acceptable()
        kind = ("agreement", "order")[len(lines) % 2]
        words = good.removesuffix(".").lower().split()
        bad = " ".join(grammar.corruptions[kind](words)).capitalize() + "."
        if bad != good:
            lines.append(
                {
                    "sentence_good": good,
                    "sentence_bad": bad,
                    "UID": f"{kind}_{len(lines) % 3}",
                    "field": "syntax" if kind == "order" else "morphology",
                    "one_prefix_prefix": f"{good.split()[0]} {len(lines)}",
                    "simple_LM_method": len(lines) % 2 == 0,
                    "pairID": str(len(lines)),
                }
            )
    return lines


def write_pairs(path: Path, lines: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path
