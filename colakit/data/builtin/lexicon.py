"""Words of one pool with their inflected forms.

The pools are `id` (train and id_dev) and `ood` (ood_dev). They share no open-class words, only `CLOSED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain

from colakit.data.builtin import words

POOLS = ("id", "ood")
PEOPLE = ("person", "man", "woman")
OBJECTS = ("food", "document", "vehicle", "thing", "clothing")
VOWELS = "aeiou"
CLOSED = frozenset(words.CLOSED.split())


@dataclass(frozen=True)
class Noun:
    """A noun; `kind` is a key of `words.NOUNS`."""

    singular: str
    plural: str
    kind: str

    def form(self, plural: bool) -> str:
        """Return the plural or singular form."""
        return self.plural if plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb; `frame` is a key of `words.VERBS`."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str
    frame: str


@dataclass(frozen=True)
class Governor:
    """A word with its preposition and a wrong preposition."""

    word: str
    right: str
    wrong: str


@dataclass(frozen=True)
class Lexicon:
    """All words of one pool, by class."""

    pool: str
    nouns: Mapping[str, tuple[Noun, ...]]
    names: Mapping[str, tuple[str, ...]]
    verbs: Mapping[str, tuple[Verb, ...]]
    particles: tuple[tuple[Verb, str], ...]
    adjectives: Mapping[str, tuple[str, ...]]
    adverbs: tuple[str, ...]
    verb_prepositions: tuple[tuple[Verb, Governor], ...]
    adjective_prepositions: tuple[Governor, ...]

    def forms(self) -> set[str]:
        """Return every open-class form of the pool, in lower case."""
        verbs = [*chain(*self.verbs.values()), *(v for v, _ in (*self.particles, *self.verb_prepositions))]
        forms = chain(
            *((noun.singular, noun.plural) for noun in chain(*self.nouns.values())),
            *((verb.base, verb.third, verb.past, verb.participle, verb.gerund) for verb in verbs),
            *(*self.names.values(), *self.adjectives.values(), self.adverbs),
            (comparative(word) for word in self.adjectives["short"]),
            (governor.word for governor in self.adjective_prepositions),
        )
        return {form.lower() for form in forms}


@cache
def load_lexicon(pool: str) -> Lexicon:
    """Return the words of a pool."""
    column = POOLS.index(pool)

    def of(line: str) -> tuple[str, ...]:
        return tuple(line.split("|")[column].split())

    def governors(line: str) -> tuple[Governor, ...]:
        return tuple(Governor(*entry.split(":")) for entry in of(line))

    return Lexicon(
        pool,
        nouns={kind: tuple(noun(word, kind) for word in of(line)) for kind, line in words.NOUNS.items()},
        names={gender: of(line) for gender, line in words.NAMES.items()},
        verbs={frame: tuple(verb(word, frame) for word in of(line)) for frame, line in words.VERBS.items()},
        particles=tuple(
            (verb(word.split(":")[0], "particle"), word.split(":")[1]) for word in of(words.PARTICLES)
        ),
        adjectives={kind: of(line) for kind, line in words.ADJECTIVES.items()},
        adverbs=of(words.ADVERBS),
        verb_prepositions=tuple(
            (verb(governor.word, "preposition"), governor) for governor in governors(words.VERB_PREPOSITIONS)
        ),
        adjective_prepositions=governors(words.ADJECTIVE_PREPOSITIONS),
    )


def noun(entry: str, kind: str) -> Noun:
    """Return a noun from `singular[/plural]`."""
    singular, _, plural = entry.partition("/")
    return Noun(singular, plural or _with_s(singular), kind)


def verb(entry: str, frame: str) -> Verb:
    """Return a verb from `base[/past/participle[/gerund]]`."""
    base, *irregular = entry.split("/")
    past, participle = irregular[:2] or [_with_ed(base)] * 2
    gerund = irregular[2] if len(irregular) > 2 else _with_ing(base)
    return Verb(base, _with_s(base), past, participle, gerund, frame)


def comparative(adjective: str) -> str:
    """Return the form in -er."""
    if adjective.endswith("y") and adjective[-2] not in VOWELS and adjective != "shy":
        return adjective[:-1] + "ier"
    if adjective.endswith("e"):
        return adjective + "r"
    return adjective + (adjective[-1] if adjective == "thin" else "") + "er"


def _with_s(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def _with_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else word + "ed"


def _with_ing(word: str) -> str:
    if word.endswith("ie"):
        return word[:-2] + "ying"
    return (word[:-1] if word.endswith("e") and not word.endswith("ee") else word) + "ing"
