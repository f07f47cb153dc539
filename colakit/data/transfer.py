"""Sentences without labels, for a teacher to label: none of them stands in a set that measures.

A transfer set is what a student sees of its teacher beyond the labelled sentences (Hinton et al. 2015,
arXiv:1503.02531, §2).
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from colakit.data.corruption import Corruptor
from colakit.errors import ColakitError

SourceName = TypeVar("SourceName", bound=str)
SOURCES = ("corrupt", "word_resample", "lm_sample", "text", "lm_sample_corrupt", "text_corrupt")
"""All sources, in the order in which a transfer set is drawn (the order determines the draws)."""
FORMAT = 5  # raise it when sentences are made differently, so that cached sets are made anew
PATIENCE = 20  # sentences in a row that are not new, for each one wanted, until a source is called exhausted
WORDS = range(2, 41)  # of a sentence that is used, or up to the longest of train


def normalised(sentence: str) -> str:
    """Return `sentence` without case, space and punctuation: two that agree in this are one sentence."""
    text = unicodedata.normalize("NFKC", sentence).casefold()
    return "".join(character for character in text if character.isalnum())


class Collector:
    """Takes sentences that are new and not forbidden; two that are alike when normalised are one.

    Args:
        forbidden: sentences that must never be taken: those that measure.
        known: sentences that need not be taken again: those of train.
        lengths: in words, of those taken.
    """

    def __init__(self, forbidden: Iterable[str], known: Iterable[str] = (), lengths: range = WORDS) -> None:
        self.forbidden = frozenset(map(normalised, forbidden))
        self.refused = {"", *self.forbidden, *map(normalised, known)}
        self.lengths = lengths
        self.taken: list[str] = []

    def is_forbidden(self, sentence: str) -> bool:
        """Whether the sentence is one of those that measure, and not to be corrupted either."""
        return normalised(sentence) in self.forbidden

    def take(self, sentence: str) -> bool:
        """Take the sentence, if it may be taken; tell whether."""
        words = sentence.split()
        form = normalised(sentence)
        if form in self.refused or len(words) not in self.lengths:
            return False
        self.refused.add(form)
        self.taken.append(" ".join(words))
        return True

    def fill(
        self, source: Iterable[str], wanted: int, name: str, taken: Callable[[], object] = lambda: None
    ) -> None:
        """Take `wanted` sentences more from `source`.

        Args:
            name: of the source, for the error.
            taken: called after each.

        Raises:
            ColakitError: if it has too few.
        """
        missing, refused = wanted, 0
        for sentence in source if wanted else ():
            if self.take(sentence):
                missing, refused = missing - 1, 0
                taken()
                if not missing:
                    return
            elif (refused := refused + 1) > PATIENCE * wanted:
                break
        if missing:
            raise ColakitError(
                f"transfer.{name}: only {wanted - missing:,} of {wanted:,} sentences are new",
                hint="Lower transfer.size (0 draws none), or give another source a larger share.",
            )


def corrupt_sentences(sentences: Sequence[str], words_of: Iterable[str], rng: random.Random) -> Iterator[str]:
    """Yield the sentences in ever new orders, each with one corruption; without end, if any has two words.

    Args:
        words_of: sentences whose words and forms the corruptions take.
    """
    corruptor = Corruptor(words_of)
    order = list(sentences)

    def one_round() -> Iterator[str]:
        rng.shuffle(order)
        corrupted = (corruptor.corrupt(sentence, rng) for sentence in order)
        return (sentence for sentence in corrupted if sentence is not None)

    return rounds(one_round)


def rounds(draw: Callable[[], Iterable[str]], least: int = 1) -> Iterator[str]:
    """Yield what round after round draws, until one draws fewer than `least`."""
    drawn = least
    while drawn >= least:
        drawn = 0
        for drawn, sentence in enumerate(draw(), start=1):  # noqa: B007 (counted for the loop around it)
            yield sentence


def shares(wanted: int, weights: Mapping[SourceName, float]) -> dict[SourceName, int]:
    """Return how many of `wanted` sentences each source gives, in proportion to its weight, by name."""
    weights = dict(sorted(weights.items(), key=lambda item: SOURCES.index(item[0])))
    total = sum(weights.values())
    ends = [round(wanted * reached / total) for reached in accumulate(weights.values())]
    return {name: end - start for name, (start, end) in zip(weights, pairwise([0, *ends]), strict=True)}
