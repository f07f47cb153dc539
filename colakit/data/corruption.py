"""Corrupted sentences: one word dropped, moved, doubled, inserted, replaced or inflected differently.

Real/fake classification is a pretext task of Warstadt et al. 2019 (arXiv:1805.12471, section 4); most of our
corruptions also keep the sentence's words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain

Words = list[str]

ENDINGS = (  # pairs of endings of two forms of a word
    *(("", "s"), ("", "ed"), ("", "ing"), ("e", "es"), ("e", "ed"), ("e", "ing"), ("y", "ies"), ("y", "ied")),
    *(("s", "ed"), ("s", "ing"), ("ed", "ing"), ("es", "ing")),
)
FUNCTION_WORDS = (  # words of a row replace each other
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
TRIES = 20  # attempts at a changed sentence


class Corruptor:
    """Corrupts sentences with words of other sentences.

    Args:
        sentences: source of words and word forms.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self.words = [word for text in sentences for word in split_words(text)[0] if word.islower()]
        self.known = set(self.words)
        self.forms = {word: forms for word in self.known if (forms := _forms(word, self.known))}
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
        """Return `sentence` with one corruption, or None if it has no changed form (fewer than two words)."""
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
        at = rng.randrange(len(words))
        return [*words[:at], rng.choice(self.words), *words[at:]] if self.words else words

    def _replace(self, words: Words, rng: random.Random) -> Words:
        at = rng.randrange(len(words))
        return [*words[:at], rng.choice(self.words), *words[at + 1 :]] if self.words else words

    def _inflect(self, words: Words, rng: random.Random) -> Words:
        """Replace a word by another form, or a function word by another of its row."""
        candidates = [i for i in range(len(words)) if _uncapitalised(words, i) in self.forms]
        if not candidates:
            return words
        at = rng.choice(candidates)
        other = rng.choice(self.forms[_uncapitalised(words, at)])
        return [*words[:at], other, *words[at + 1 :]]


def _forms(word: str, known: set[str]) -> list[str]:
    """Return the other inflected forms of `word` that are `known`."""
    forms: set[str] = set()
    for one, two in chain(ENDINGS, ((b, a) for a, b in ENDINGS)):
        stem = word.removesuffix(one)
        if word.endswith(one) and len(stem) > 2 and stem + two != word and stem + two in known:
            forms.add(stem + two)
    return sorted(forms)


def split_words(sentence: str) -> tuple[Words, str]:
    """Return the words and the final punctuation mark."""
    text = sentence.rstrip()
    end = text[-1] if text and text[-1] in ".?!" else ""
    return text.removesuffix(end).split(), end


def join_words(before: Sequence[str], after: Sequence[str], end: str, known: Collection[str] = ()) -> str:
    """Join the words `after` into a sentence whose first word takes over the capital of `before`.

    Args:
        known: lower-case words; a first word not among them is a name and keeps its capital.
    """
    first = before[0]
    lowered = first.lower() if first != "I" and first.lower() in known else first
    words = [lowered if word == first else word for word in after]
    text = " ".join(words) + end
    return text[0].upper() + text[1:] if first[0].isupper() else text


def _uncapitalised(words: Sequence[str], at: int) -> str:
    word = words[at]
    return word.lower() if at == 0 and word != "I" else word


def _without(words: Words, at: int) -> Words:
    return [*words[:at], *words[at + 1 :]]


def _swap(words: Words, rng: random.Random) -> Words:
    at = rng.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _move(words: Words, rng: random.Random) -> Words:
    at = rng.randrange(len(words))
    rest = _without(words, at)
    to = rng.randrange(len(words))
    return [*rest[:to], words[at], *rest[to:]]


def _double(words: Words, rng: random.Random) -> Words:
    at = rng.randrange(len(words))
    return [*words[: at + 1], *words[at:]]


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
