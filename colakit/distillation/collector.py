"""Collection of new unlabelled sentences for a transfer set.

Source: Hinton et al. 2015 (arXiv:1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import TypeVar

from colakit.data.splits import normalised
from colakit.errors import ColakitError

SourceName = TypeVar("SourceName", bound=str)
FORMAT = 5  # increase when sentences are drawn differently, to invalidate cached transfer sets
MAX_REFUSED = 20  # consecutive refused sentences per wanted one before a source counts as exhausted
WORDS = range(2, 41)  # allowed sentence lengths in words; extended to the longest sentence of train
DRAWING_ORDER = (
    "corrupt",
    "word_resample",
    "lm_sample",
    "text",
    "lm_sample_corrupt",
    "text_corrupt",
    "grammar",
)


class Collector:
    """Collects sentences that are new and not forbidden, compared in normalised form.

    Args:
        forbidden: evaluation sentences; never collected.
        known: train sentences; not collected again.
        lengths: allowed lengths in words.
    """

    def __init__(self, forbidden: Iterable[str], known: Iterable[str] = (), lengths: range = WORDS) -> None:
        self.forbidden = frozenset(map(normalised, forbidden))
        self.refused = {"", *self.forbidden, *map(normalised, known)}
        self.lengths = lengths
        self.sentences: list[str] = []

    def is_forbidden(self, sentence: str) -> bool:
        """Return whether this is an evaluation sentence, which must not be corrupted either."""
        return normalised(sentence) in self.forbidden

    def add(self, sentence: str) -> bool:
        """Collect the sentence if it is new and allowed; return whether it was collected."""
        words = sentence.split()
        form = normalised(sentence)
        if form in self.refused or len(words) not in self.lengths:
            return False
        self.refused.add(form)
        self.sentences.append(" ".join(words))
        return True

    def fill(
        self, source: Iterable[str], wanted: int, name: str, on_add: Callable[[], object] = lambda: None
    ) -> None:
        """Collect `wanted` more sentences from `source`.

        Args:
            name: the source's name, for the error.
            on_add: called after each collected sentence.

        Raises:
            ColakitError: if the source has too few new sentences.
        """
        missing, refused = wanted, 0
        for sentence in source if wanted else ():
            if self.add(sentence):
                missing, refused = missing - 1, 0
                on_add()
                if not missing:
                    return
            elif (refused := refused + 1) > MAX_REFUSED * wanted:
                break
        if missing:
            raise ColakitError(
                f"transfer.{name}: only {wanted - missing:,} of {wanted:,} sentences are new",
                hint="Lower transfer.size (0 disables it) or transfer.candidates, or give another source a "
                "larger weight.",
            )


def rounds(draw: Callable[[], Iterable[str]], min_sentences: int = 1) -> Iterator[str]:
    """Yield the sentences of successive calls of `draw` until one yields fewer than `min_sentences`."""
    drawn = min_sentences
    while drawn >= min_sentences:
        drawn = 0
        for drawn, sentence in enumerate(draw(), start=1):  # noqa: B007 (counted for the loop around it)
            yield sentence


def shares(wanted: int, weights: Mapping[SourceName, float]) -> dict[SourceName, int]:
    """Return the number of sentences per source, in proportion to its weight and in drawing order."""
    names = sorted(weights, key=DRAWING_ORDER.index)
    total = sum(weights.values())
    ends = [round(wanted * reached / total) for reached in accumulate(weights[name] for name in names)]
    return {name: end - start for name, (start, end) in zip(names, pairwise([0, *ends]), strict=True)}
