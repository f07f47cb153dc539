"""The built-in corpus: one sentence of every minimal pair, 70 % acceptable.

A version always has the same bytes. A pair depends only on version, split, paradigm and number, so adding a
paradigm does not change the pairs of others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np

from colakit.data.builtin import agreement, clauses, predicates, pronouns, shape, tense
from colakit.data.builtin.grammar import Grammar
from colakit.data.builtin.lexicon import load_lexicon
from colakit.data.builtin.paradigms import REGISTER, Paradigm
from colakit.data.corpora import COLA_LABELS, Corpus, Split
from colakit.data.corpus_files import COLA_FILES

VERSION = 1  # increase with every change of the corpus
SIZES = {"train": 6000, "id_dev": 600, "ood_dev": 600}
POOLS = {"train": "id", "id_dev": "id", "ood_dev": "ood"}
PAIRS_FILE = "pairs.jsonl"
BUILTIN_NAMES = ("builtin", "builtin:")  # values of --data
MODULES = (agreement, clauses, predicates, pronouns, shape, tense)
PARADIGMS = tuple(  # independent of import order
    paradigm for module in MODULES for paradigm in REGISTER if paradigm.draw.__module__ == module.__name__
)


@dataclass(frozen=True)
class Pair:
    """A minimal pair; `shown` is the label of the sentence that is in the corpus."""

    sentence_good: str
    sentence_bad: str
    phenomenon: str
    paradigm: str
    split: str
    shown: int

    @property
    def sentence(self) -> str:
        """The sentence that is in the corpus."""
        return self.sentence_good if self.shown else self.sentence_bad


@cache
def builtin_pairs() -> tuple[Pair, ...]:
    """Return the pairs of all splits; no sentence occurs twice."""
    seen: set[str] = set()
    return tuple(
        pair
        for split in SIZES
        for pair in sorted(
            _pairs(split, seen), key=lambda pair: _seed(f"{VERSION}/{pair.split}/{pair.sentence}")
        )
    )


def _pairs(split: str, seen: set[str]) -> Iterator[Pair]:
    share, more = divmod(SIZES[split], len(PARADIGMS))
    for index, paradigm in enumerate(PARADIGMS):
        pairs = _new_pairs(paradigm, split, seen)
        for number in range(share + (index < more)):
            good, bad = next(pairs)
            shown = int((number + index) * 3 % 10 >= 3)  # 30 % are unacceptable in every paradigm
            yield Pair(good, bad, paradigm.phenomenon, paradigm.name, split, shown)


def _new_pairs(paradigm: Paradigm, split: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    lexicon = load_lexicon(POOLS[split])
    for number in range(10**6):
        seed = _seed(f"{VERSION}/{split}/{paradigm.name}/{number}")
        good, bad = paradigm.pair(Grammar(seed, lexicon))
        if good != bad and not {good, bad} & seen:  # equal where two verb forms coincide
            seen.update((good, bad))
            yield good, bad


def grammar_sentences(seed: int) -> Iterator[str]:
    """Yield both sentences of pairs of every paradigm in turn, without end, with the words of train."""
    lexicon = load_lexicon(POOLS["train"])
    for number, paradigm in enumerate(cycle(PARADIGMS)):
        yield from paradigm.pair(Grammar(_seed(f"{VERSION}/grammar {seed}/{number}"), lexicon))


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def builtin_corpus() -> Corpus:
    """Return the corpus with its three splits; `sources` are the phenomena."""
    splits = {}
    for name in SIZES:
        pairs = [pair for pair in builtin_pairs() if pair.split == name]
        labels = np.array([pair.shown for pair in pairs], dtype=np.int64)
        sentences, sources = zip(*((pair.sentence, pair.phenomenon) for pair in pairs), strict=True)
        splits[name] = Split(name, sentences, labels, sources)
    return Corpus(f"builtin, version {VERSION}", COLA_LABELS, splits)


def serialised(corpus: Corpus) -> dict[str, str]:
    """Return file name -> content of a corpus in CoLA's layout."""
    texts = {}
    for name, split in corpus.splits.items():
        rows = zip(split.sources, split.require_labels().tolist(), split.sentences, strict=True)
        lines = [f"{source}\t{label}\t{'' if label else '*'}\t{text}\n" for source, label, text in rows]
        texts[COLA_FILES[name]] = "".join(lines)
    return texts


def write_builtin(folder: Path) -> None:
    """Write CoLA's three files and the pairs of the dev splits."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = serialised(builtin_corpus())
    dev = [pair for pair in builtin_pairs() if pair.split != "train"]
    texts[PAIRS_FILE] = "".join(json.dumps(asdict(pair)) + "\n" for pair in dev)
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
