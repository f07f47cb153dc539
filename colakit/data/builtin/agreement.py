"""Paradigms of subject-verb and determiner-noun agreement."""

from __future__ import annotations

from colakit.data.builtin.grammar import BESIDE, Grammar, choose
from colakit.data.builtin.lexicon import OBJECTS, PEOPLE, Verb
from colakit.data.builtin.paradigms import paradigm, question

BE = (("is", "are"), ("was", "were"))


def _agreeing(verb: Verb, plural: bool) -> str:
    return choose(plural, verb.base, verb.third)


def _be(grammar: Grammar, plural: bool) -> str:
    singular, many = grammar.pick(BE)
    return choose(plural, many, singular)


def _modified_person(grammar: Grammar, plural: bool) -> str:
    """A subject followed by a noun of the other number."""
    subject = f"{grammar.phrase(*PEOPLE, plural=plural)} {grammar.pick(BESIDE)}"
    return f"{subject} {grammar.definite(*PEOPLE, 'thing', 'animal', plural=not plural)}"


def _modified_thing(grammar: Grammar, plural: bool) -> str:
    thing = grammar.definite("thing", "document", "food", plural=plural)
    other = grammar.definite("place", "person", plural=not plural)
    return f"{thing} {grammar.pick(('near', 'behind'))} {other}"


@paradigm("subject-verb agreement")
def across_a_prepositional_phrase(grammar: Grammar) -> str:
    """The nurses near the door [smile|smiles]."""
    plural = grammar.chance()
    subject = _modified_person(grammar, plural)
    verb = _agreeing(grammar.verb("intransitive"), plural)
    return f"{subject} {grammar.pick(('', 'always', 'often'))} {verb} {grammar.manner_or_place()}"


@paradigm("subject-verb agreement")
def across_a_relative_clause(grammar: Grammar) -> str:
    """The nurse that the kings met [smiles|smile]."""
    plural = grammar.chance()
    subject = grammar.phrase(*PEOPLE, plural=plural)
    other = grammar.definite(*PEOPLE, plural=not plural)
    relative = f"that {other} {grammar.person_verb().past}"
    if grammar.chance():
        return f"{subject} {relative} {_agreeing(grammar.verb('intransitive'), plural)} {grammar.place()}"
    return f"{subject} {relative} {_agreeing(grammar.verb('stative'), plural)} {grammar.phrase(*OBJECTS)}"


@paradigm("subject-verb agreement")
def inside_a_relative_clause(grammar: Grammar) -> str:
    """The nurse that [admires|admire] the kings smiled."""
    plural = grammar.chance()
    subject = grammar.phrase(*PEOPLE, plural=plural)
    verb = _agreeing(grammar.person_verb(), plural)
    other = grammar.phrase(*PEOPLE, plural=not plural)
    return f"{subject} {grammar.pick(('who', 'that'))} {verb} {other} {grammar.predicate().past}"


@paradigm("subject-verb agreement")
def of_be(grammar: Grammar) -> str:
    """The keys near the nurse [were|was] heavy."""
    plural = grammar.chance()
    return f"{_modified_thing(grammar, plural)} {_be(grammar, plural)} {grammar.adjective('document')}"


@paradigm("subject-verb agreement")
def of_have(grammar: Grammar) -> str:
    """The nurses behind the king [have|has] smiled."""
    plural = grammar.chance()
    subject, have = _modified_person(grammar, plural), choose(plural, "have", "has")
    return f"{subject} {have} {grammar.predicate().participle}"


@question("subject-verb agreement")
def of_an_inverted_verb(grammar: Grammar) -> str:
    """[Are|Is] the keys near the king heavy?"""
    plural = grammar.chance()
    verb = _be(grammar, plural)
    return f"{verb} {_modified_thing(grammar, plural)} {grammar.adjective('document')}"


@paradigm("subject-verb agreement")
def after_there(grammar: Grammar) -> str:
    """There [were|was] several lamps in the kitchen."""
    plural = grammar.chance()
    verb = _be(grammar, plural)
    word = grammar.pick(("two", "several", "some", "three")) if plural else "a"
    return f"there {verb} {grammar.phrase(*OBJECTS, plural=plural, determiner=word)} {grammar.place()}"


@paradigm("determiner-noun agreement")
def of_a_demonstrative(grammar: Grammar) -> str:
    """Mary dropped [these|this] heavy lamps."""
    plural = grammar.chance()
    one, many = grammar.pick((("this", "these"), ("that", "those")))
    verb, kind = grammar.object_verb()
    noun = grammar.modified(grammar.noun(kind), plural, 0.7)
    return f"{grammar.person()} {verb.past} {choose(plural, many, one)} {noun} {grammar.aside()}"


@paradigm("determiner-noun agreement")
def of_the_noun(grammar: Grammar) -> str:
    """Mary dropped these heavy [lamps|lamp]."""
    plural = grammar.chance()
    words = ("these", "those", "several", "two", "many") if plural else ("this", "that", "every", "a")
    word, noun = grammar.pick(words), grammar.noun(*PEOPLE)
    adjective = grammar.adjective(noun.kind) if grammar.chance(0.7) else ""
    person = f"{word} {adjective} {choose(plural, noun.plural, noun.singular)}"
    return f"{grammar.person()} {grammar.verb('social').past} {person} {grammar.aside()}"


@paradigm("determiner-noun agreement")
def of_a_quantifier(grammar: Grammar) -> str:
    """[Every|Many] tall nurse smiled."""
    plural = grammar.chance()
    one, many = grammar.pick(("every", "each", "a")), grammar.pick(("many", "several", "two", "both"))
    subject = grammar.modified(grammar.noun(*PEOPLE), plural, 0.6)
    return f"{choose(plural, many, one)} {subject} {grammar.predicate().past}"


@paradigm("determiner-noun agreement")
def one_of_several(grammar: Grammar) -> str:
    """One of the tall [nurses|nurse] smiled."""
    noun = grammar.noun(*PEOPLE)
    adjective = grammar.adjective(noun.kind) if grammar.chance() else ""
    several = grammar.chance()
    kin = f"the {grammar.noun('man', 'woman').singular} of"
    head = grammar.pick(("one of", "each of", "several of")) if several else kin
    determiner = "the" if several else grammar.pick(("this", "that", "every"))
    marked = choose(several, noun.plural, noun.singular)
    return f"{head} {determiner} {adjective} {marked} {grammar.predicate().past}"


@paradigm("determiner-noun agreement")
def much_or_many(grammar: Grammar) -> str:
    """There was too [much|many] furniture in the kitchen."""
    mass = grammar.chance()
    noun = grammar.noun("mass").singular if mass else grammar.noun(*OBJECTS).plural
    amount = choose(mass, "much", "many") if grammar.chance(0.7) else choose(mass, "little", "few")
    degree = grammar.pick(("too", "so", "very"))
    if grammar.chance():
        return f"there {'was' if mass else 'were'} {degree} {amount} {noun} {grammar.place()}"
    return f"{grammar.person()} saw {degree} {amount} {noun} {grammar.place()}"
