"""A grammar that draws acceptable English phrases and clauses from one pool of words.

A paradigm writes a pair as one text with `[right|wrong]` where the two sentences differ.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from colakit.data.builtin.lexicon import OBJECTS, PEOPLE, Lexicon, Noun, Verb

Item = TypeVar("Item")
PLACES = ("in", "near", "behind")
BESIDE = ("near", "behind", "beside", "with")
PORTABLE = ("food", "document", "thing", "clothing")
TIMES = ("yesterday", "last week", "last month", "last year")
QUESTION_AUXILIARIES = ("did", "should", "will")
AUXILIARIES = ("will", "can", "could", "must", "might", "should")
PRONOUNS = {  # subject -> object, possessive, reflexive
    "I": ("me", "my", "myself"),
    "you": ("you", "your", "yourself"),
    "he": ("him", "his", "himself"),
    "she": ("her", "her", "herself"),
    "we": ("us", "our", "ourselves"),
    "they": ("them", "their", "themselves"),
}
SINGULAR_DETERMINERS = ("the", "the", "a", "this", "that", "my", "her", "his")
PLURAL_DETERMINERS = ("the", "the", "some", "these", "those", "two", "several", "my", "their")


def contrast(right: str, wrong: str) -> str:
    """Return the mark `[right|wrong]`."""
    return f"[{right}|{wrong}]"


def choose(first: bool, one: str, other: str) -> str:
    """Return the mark with `one` right if `first`, else with `other` right."""
    return contrast(one, other) if first else contrast(other, one)


def swapped(one: str, other: str) -> str:
    """Return the mark `[one other|other one]`."""
    return contrast(f"{one} {other}", f"{other} {one}")


def expand(text: str) -> tuple[str, str]:
    """Return the right and wrong sentence of a marked text, with `a` changed to `an` before vowels."""
    members = (re.sub(r"\[([^|\]]*)\|([^|\]]*)\]", rf"\{side}", text) for side in (1, 2))
    right, wrong = (re.sub(r"\ba (?=[aeiou])", "an ", " ".join(member.split())) for member in members)
    return right, wrong


@dataclass(frozen=True)
class Phrase:
    """A noun phrase with its subject pronoun and its head noun or name."""

    text: str
    pronoun: str
    head: str

    def __str__(self) -> str:
        return self.text

    @property
    def plural(self) -> bool:
        """Whether it takes a plural verb."""
        return self.pronoun == "they"

    @property
    def reflexive(self) -> str:
        """Its reflexive pronoun."""
        return "itself" if self.pronoun == "it" else PRONOUNS[self.pronoun][2]


class Predicate:
    """A verb and its complements `rest`; the attributes named as forms of `Verb` include `rest`."""

    def __init__(self, verb: Verb, rest: str) -> None:
        self.verb, self.rest = verb, rest
        self.base, self.third, self.past, self.participle, self.gerund = (
            f"{form} {rest}" for form in (verb.base, verb.third, verb.past, verb.participle, verb.gerund)
        )


class Grammar:
    """Draws the parts of one sentence without repeating a noun or name.

    Uses `Random.random` only, the one method whose sequence Python guarantees for a seed.
    """

    def __init__(self, seed: int, lexicon: Lexicon) -> None:
        self._random = random.Random(seed)
        self.lexicon = lexicon
        self._used: set[str] = set()

    def chance(self, probability: float = 0.5) -> bool:
        """Return True with a probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[int(self._random.random() * len(items))]

    def two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Return two different items."""
        first = int(self._random.random() * len(items))
        second = int(self._random.random() * (len(items) - 1))
        return items[first], items[second + (second >= first)]

    def fresh(self, items: Sequence[Item]) -> Item:
        """Return an item that is not yet used in this sentence."""
        item = self.pick([item for item in items if str(item) not in self._used])
        self._used.add(str(item))
        return item

    def noun(self, *kinds: str) -> Noun:
        """Return a noun of the given kinds, uniformly over nouns."""
        return self.fresh([noun for kind in kinds for noun in self.lexicon.nouns[kind]])

    def verb(self, *frames: str) -> Verb:
        """Return a verb of one of the frames."""
        return self.pick([verb for frame in frames for verb in self.lexicon.verbs[frame]])

    def person_verb(self) -> Verb:
        """Return a verb whose subject and object are people."""
        return self.verb("social", "reflexive")

    def adjective(self, kind: str) -> str:
        """Return an adjective for nouns of a kind."""
        if kind in PEOPLE:
            return self.pick((*self.lexicon.adjectives["short"], *self.lexicon.adjectives["long"]))
        solid = "thing" if kind in ("thing", "clothing", "vehicle") else "plain"
        return self.fresh(self.lexicon.adjectives["idea" if kind == "idea" else solid])

    def modified(self, noun: Noun, plural: bool, probability: float = 0.35) -> str:
        """Return a noun, sometimes with an adjective."""
        adjective = self.adjective(noun.kind) if noun.kind != "animal" and self.chance(probability) else ""
        return f"{adjective} {noun.form(plural)}"

    def phrase(
        self, *kinds: str, plural: bool | None = None, determiner: str = "", adjective: float = 0.35
    ) -> Phrase:
        """Return a determiner, an optional adjective and a noun."""
        plural = self.chance(0.4) if plural is None else plural
        noun = self.noun(*kinds)
        word = determiner or self.pick(PLURAL_DETERMINERS if plural else SINGULAR_DETERMINERS)
        one = {"man": "he", "woman": "she", "person": "he"}.get(noun.kind, "it")
        text = f"{word} {self.modified(noun, plural, adjective)}"
        return Phrase(" ".join(text.split()), "they" if plural else one, noun.form(plural))

    def definite(self, *kinds: str, plural: bool | None = None) -> Phrase:
        """Return a phrase with `the`."""
        return self.phrase(*kinds, plural=plural, determiner="the")

    def name(self, gender: str | None = None) -> Phrase:
        """Return a first name."""
        gender = gender or self.pick(("man", "woman"))
        name = self.fresh(self.lexicon.names[gender])
        return Phrase(name, "he" if gender == "man" else "she", name)

    def person(self, plural: bool | None = None) -> Phrase:
        """Return a name or a phrase for people."""
        if not plural and self.chance(0.35):
            return self.name()
        return self.phrase(*PEOPLE, plural=plural)

    def preposition_verb(self) -> tuple[Verb, str]:
        """Return a verb and the mark of its preposition, which is missing or superfluous when wrong."""
        if self.chance():
            verb, governor = self.pick(self.lexicon.verb_prepositions)
            return verb, contrast(governor.right, "")
        return self.person_verb(), contrast("", self.pick(("of", "at")))

    def gendered(self, gender: str | None = None) -> Phrase:
        """Return one man or woman, by name or by a noun."""
        gender = gender or self.pick(("man", "woman"))
        return self.name(gender) if self.chance() else self.phrase(gender, plural=False)

    def place(self) -> str:
        """Return a prepositional phrase of place."""
        return f"{self.pick(PLACES)} {self.phrase('place', plural=False, determiner='the')}"

    def manner(self) -> str:
        """Return an adverb of manner."""
        return self.pick(self.lexicon.adverbs)

    def aside(self) -> str:
        """Return an adverb, place, time or nothing, to end a clause in the past tense."""
        draws: list[Callable[[], str]] = [self.manner, self.place, lambda: self.pick(TIMES), str, str]
        return self.pick(draws)()

    def manner_or_place(self) -> str:
        """Return an adverb or a place, to end any clause."""
        return self.manner() if self.chance() else self.place()

    def object_verb(self) -> tuple[Verb, str]:
        """Return a verb with an obligatory object, and the kind of its object."""
        kind = self.pick((*OBJECTS, "thing"))
        return self.verb(f"transitive.{kind}"), kind

    def predicate(self, *, dynamic: bool = True) -> Predicate:
        """Return a predicate of a person; a `dynamic` one can be in the progressive."""
        draw = self.pick(("intransitive", "object", "object", "social", "dative"))
        if not dynamic and self.chance(0.2):
            return Predicate(self.verb("stative"), str(self.phrase(*OBJECTS)))
        if draw == "intransitive":
            return Predicate(self.verb("intransitive"), self.manner_or_place())
        if draw == "social":
            return Predicate(self.verb("social"), str(self.person()))
        if draw == "dative":
            return Predicate(self.verb("dative"), f"{self.phrase(*PORTABLE)} to {self.person()}")
        verb, kind = self.object_verb()
        return Predicate(verb, str(self.phrase(kind)))

    def clause(self) -> str:
        """Return a clause in the past tense."""
        if self.chance(0.25):
            return f"{self.definite('thing')} {self.verb('vanishing', 'alternating').past}"
        if self.chance(0.2):
            return f"{self.phrase('document', 'idea')} {self.verb('psych').past} {self.person()}"
        return f"{self.person()} {self.predicate(dynamic=False).past}"

    def frame(self) -> tuple[str, str]:
        """Return the text before and after a declarative clause of any tense."""
        draw = self.pick(("", "", "", "that", "that", "and", "because", "although", "before"))
        if draw == "that":
            return f"{self.person()} {self.verb('that').past} that", ""
        if draw == "and":
            return "", f", {self.pick(('and', 'but'))} {self.clause()}"
        if draw == "because":
            return "", f"because {self.clause()}"
        if draw == "although":
            return f"although {self.clause()},", ""
        return (f"{self.clause()}, and", "") if draw == "before" else ("", "")
