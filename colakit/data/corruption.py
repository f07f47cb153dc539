"""Near-miss sentences: a real one with one word dropped, moved, doubled, replaced or inflected otherwise.

Telling real from corrupted sentences is the pretext task of Warstadt et al. 2019 (arXiv:1805.12471, §4),
whose best baselines it made; here most corruptions also keep the sentence's words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain

Words = list[str]

ENDINGS = (  # a word with the first ending may have a form with the second
    *(("", "s"), ("", "ed"), ("", "ing"), ("e", "es"), ("e", "ed"), ("e", "ing"), ("y", "ies"), ("y", "ied")),
    *(("s", "ed"), ("s", "ing"), ("ed", "ing"), ("es", "ing")),
)
FUNCTION_WORDS = (  # each may stand where another of its row stood
    ("is", "are", "am", "be", "been", "being"),
    ("was", "were"),
    ("has", "have", "had", "having"),
    ("do", "does", "did", "done"),
    ("he", "him", "himself"),
    ("she", "her", "herself"),
    ("they", "them", "themselves"),
    ("I", "me", "myself"),
    ("we", "us", "ourselves"),
    ("this", "these"),
    ("that", "those"),
    ("much", "many"),
    ("some", "any"),
    ("a", "an", "the"),
    ("ever", "never"),
    ("who", "which", "what"),
    ("in", "on", "at", "of", "to", "for", "by", "with", "from"),
    ("can", "could", "will", "would", "must", "should"),
    ("my", "mine"),
    ("your", "yours"),
    ("and", "but", "or"),
)
TRIES = 20  # of kinds and places, until a sentence is another


class Corruptor:
    """Corrupts sentences with words seen in others.

    Args:
        sentences: where words and their forms come from.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self.words = [word for text in sentences for word in split_words(text)[0] if word.islower()]
        self.known = set(self.words)
        self.forms = {word: found for word in self.known if (found := _forms(word, self.known))}
        for row in FUNCTION_WORDS:
            for word in row:
                self.forms[word] = sorted({*self.forms.get(word, ()), *row} - {word})
        self.kinds: dict[str, Callable[[Words, random.Random], Words]] = {
            "drop": lambda words, rng: _without(words, rng.randrange(len(words))),
            "swap": _swap,
            "move": _move,
            "double": _double,
            "insert": self._insert,
            "replace": self._replace,
            "inflect": self._inflect,
        }
        self.weights = {"drop": 3, "swap": 4, "move": 2, "double": 1, "insert": 2, "replace": 2, "inflect": 8}

    def corrupt(self, sentence: str, rng: random.Random) -> str | None:
        """Return `sentence` with one corruption, or None where it is too short to have one."""
        words, end = split_words(sentence)
        if len(words) < 2:
            return None
        names, weights = zip(*self.weights.items(), strict=True)
        for kind in rng.choices(names, weights, k=TRIES):
            changed = self.kinds[kind](list(words), rng)
            if changed != words:
                return join_words(words, changed, end, self.known)
        return None

    def _insert(self, words: Words, rng: random.Random) -> Words:
        place = rng.randrange(len(words))
        return [*words[:place], rng.choice(self.words), *words[place:]] if self.words else words

    def _replace(self, words: Words, rng: random.Random) -> Words:
        place = rng.randrange(len(words))
        return [*words[:place], rng.choice(self.words), *words[place + 1 :]] if self.words else words

    def _inflect(self, words: Words, rng: random.Random) -> Words:
        """Put another form of a word, or another function word of its kind, in its place."""
        places = [place for place, word in enumerate(words) if _uncapitalised(words, place) in self.forms]
        if not places:
            return words
        place = rng.choice(places)
        other = rng.choice(self.forms[_uncapitalised(words, place)])
        return [*words[:place], other, *words[place + 1 :]]


def _forms(word: str, known: set[str]) -> list[str]:
    """Return the other inflected forms of `word` that are `known`."""
    found: set[str] = set()
    for one, two in chain(ENDINGS, ((b, a) for a, b in ENDINGS)):
        stem = word.removesuffix(one)
        if word.endswith(one) and len(stem) > 2 and stem + two != word and stem + two in known:
            found.add(stem + two)
    return sorted(found)


def split_words(sentence: str) -> tuple[Words, str]:
    """Return the words, and the mark that ends the sentence."""
    text = sentence.rstrip()
    end = text[-1] if text and text[-1] in ".?!" else ""
    return text.removesuffix(end).split(), end


def join_words(before: Sequence[str], after: Sequence[str], end: str, known: Collection[str] = ()) -> str:
    """Write the words as a sentence: the first word's capital goes to what is first now.

    Args:
        known: words in lower case; the capital of one that is not among them is a name's, and stays.
    """
    first = before[0]
    lowered = first.lower() if first != "I" and first.lower() in known else first
    words = [lowered if word == first else word for word in after]
    text = " ".join(words) + end
    return text[0].upper() + text[1:] if first[0].isupper() else text


def _uncapitalised(words: Sequence[str], place: int) -> str:
    word = words[place]
    return word.lower() if place == 0 and word != "I" else word


def _without(words: Words, place: int) -> Words:
    return [*words[:place], *words[place + 1 :]]


def _swap(words: Words, rng: random.Random) -> Words:
    place = rng.randrange(len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _move(words: Words, rng: random.Random) -> Words:
    place = rng.randrange(len(words))
    rest = _without(words, place)
    to = rng.randrange(len(words))
    return [*rest[:to], words[place], *rest[to:]]


def _double(words: Words, rng: random.Random) -> Words:
    place = rng.randrange(len(words))
    return [*words[: place + 1], *words[place:]]


def corrupt_sentences(sentences: Sequence[str], words_of: Iterable[str], rng: random.Random) -> Iterator[str]:
    """Yield corrupted sentences in a new random order each round; endless if any sentence has two words.

    Args:
        words_of: sentences that supply the words and word forms.
    """
    corruptor = Corruptor(words_of)
    order = list(sentences)
    is_exhausted = False
    while not is_exhausted:
        is_exhausted = True
        rng.shuffle(order)
        for sentence in order:
            if (corrupted := corruptor.corrupt(sentence, rng)) is not None:
                is_exhausted = False
                yield corrupted
