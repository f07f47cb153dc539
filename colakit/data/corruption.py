"""Corrupted sentences: one word dropped, moved, doubled, inserted, replaced or inflected differently.

Real/fake classification is a pretext task of Warstadt et al. 2019 (arXiv:1805.12471, section 4); most of our
corruptions also keep the sentence's words.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
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
WEIGHTS = {"drop": 3, "swap": 4, "move": 2, "double": 1, "insert": 2, "replace": 2, "inflect": 8}
TRIES = 20  # attempts at a changed sentence


class Corruptor:
    """Corrupts sentences with words and word forms of `sentences`."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.words = [word for text in sentences for word in split_words(text)[0] if word.islower()]
        self.known = set(self.words)
        self.forms = {word: forms for word in self.known if (forms := _forms(word, self.known))}
        for row in FUNCTION_WORDS:
            for word in row:
                self.forms[word] = sorted({*self.forms.get(word, ()), *row} - {word})

    def corrupt(self, sentence: str, rng: random.Random) -> str | None:
        """Return `sentence` with one corruption, or None if it has no changed form (fewer than two words)."""
        words, end = split_words(sentence)
        if len(words) < 2:
            return None
        for kind in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=TRIES):
            changed = self.change(kind, words, rng)
            if changed != words:
                return join_words(words, changed, end, self.known)
        return None

    def change(self, kind: str, words: Words, rng: random.Random) -> Words:
        """Return `words` with one change of a kind in `WEIGHTS`; equal to `words` where it has no effect."""
        if kind == "inflect":
            return self._inflect(words, rng)
        at = rng.randrange(len(words) - (kind == "swap"))
        before, word, after = words[:at], words[at], words[at + 1 :]
        if kind == "drop":
            return [*before, *after]
        if kind == "swap":
            return [*before, after[0], word, *after[1:]]
        if kind == "move":
            rest, to = [*before, *after], rng.randrange(len(words))
            return [*rest[:to], word, *rest[to:]]
        if kind == "double":
            return [*before, word, word, *after]
        if not self.words:
            return words
        other = rng.choice(self.words)
        return [*before, other, word, *after] if kind == "insert" else [*before, other, *after]

    def _inflect(self, words: Words, rng: random.Random) -> Words:
        """Replace a word by another form, or a function word by another of its row."""
        plain = [word.lower() if i == 0 and word != "I" else word for i, word in enumerate(words)]
        candidates = [i for i, word in enumerate(plain) if word in self.forms]
        if not candidates:
            return words
        at = rng.choice(candidates)
        return [*words[:at], rng.choice(self.forms[plain[at]]), *words[at + 1 :]]


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

    A first word that is not among the lower-case words `known` is a name and keeps its capital.
    """
    first = before[0]
    lowered = first.lower() if first != "I" and first.lower() in known else first
    words = [lowered if word == first else word for word in after]
    text = " ".join(words) + end
    return text[0].upper() + text[1:] if first[0].isupper() else text


def corrupt_sentences(sentences: Sequence[str], words_of: Iterable[str], rng: random.Random) -> Iterator[str]:
    """Yield corrupted sentences in a new random order each round; endless if any sentence has two words.

    The sentences `words_of` supply the words and word forms.
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
