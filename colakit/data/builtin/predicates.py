"""Paradigms of argument structure and selection."""

from __future__ import annotations

from colakit.data.builtin.grammar import Grammar, choose, contrast
from colakit.data.builtin.lexicon import OBJECTS, PEOPLE
from colakit.data.builtin.paradigms import paradigm


def _two_verbs(grammar: Grammar, first: str, second: str) -> str:
    """Mark of a verb of the first frame (right) and one of the second (wrong), in the past tense."""
    return contrast(grammar.verb(first).past, grammar.verb(second).past)


@paradigm("argument structure")
def an_object_is_needed(grammar: Grammar) -> str:
    """The nurse [smiled|repaired] in the garden."""
    right, (wrong, _) = grammar.verb("intransitive"), grammar.object_verb()
    return f"{grammar.person()} {contrast(right.past, wrong.past)} {grammar.manner_or_place()}"


@paradigm("argument structure")
def an_object_is_too_much(grammar: Grammar) -> str:
    """The nurse [repaired|smiled] the car in the garden."""
    (right, kind), wrong = grammar.object_verb(), grammar.verb("intransitive")
    verbs = contrast(right.past, wrong.past)
    return f"{grammar.person()} {verbs} {grammar.phrase(kind)} {grammar.aside()}"


@paradigm("argument structure")
def causatives(grammar: Grammar) -> str:
    """The nurse [broke|vanished] the lamp."""
    verbs = _two_verbs(grammar, grammar.pick(("alternating", "transitive.thing")), "vanishing")
    return f"{grammar.person()} {verbs} {grammar.phrase('thing')} {grammar.aside()}"


@paradigm("argument structure")
def inchoatives(grammar: Grammar) -> str:
    """The lamp [broke|found] in the kitchen."""
    verbs = _two_verbs(grammar, grammar.pick(("alternating", "vanishing")), "transitive.thing")
    return f"{grammar.phrase('thing')} {verbs} {grammar.place()}"


@paradigm("argument structure")
def two_objects(grammar: Grammar) -> str:
    """The nurse explained [the plan to Mary|Mary the plan]; she [lent|donated] Mary the lamp."""
    idea = grammar.chance()
    verb = grammar.verb("to.idea" if idea else "to.thing")
    gift = grammar.definite("idea") if idea else grammar.definite("thing", "document")
    subject, other = grammar.person(), grammar.person()
    if grammar.chance():
        return f"{subject} {verb.past} {contrast(f'{gift} to {other}', f'{other} {gift}')} {grammar.aside()}"
    gift = grammar.definite("thing", "document")
    wrong = grammar.verb("to.thing").past
    return f"{subject} {contrast(grammar.verb('dative').past, wrong)} {other} {gift} {grammar.aside()}"


@paradigm("argument structure")
def passives(grammar: Grammar) -> str:
    """The nurse was [praised|smiled] by the king."""
    plural = grammar.chance(0.4)
    subject = grammar.phrase(*PEOPLE, plural=plural)
    right, wrong = grammar.person_verb(), grammar.verb("intransitive")
    be = grammar.pick(("were" if plural else "was", "will be", "must be", "could be"))
    return f"{subject} {be} {contrast(right.participle, wrong.participle)} by {grammar.person()}"


@paradigm("argument structure")
def a_preposition_is_needed(grammar: Grammar) -> str:
    """The nurse listened [to|] the king; the nurse praised [|to] the king."""
    verb, marked = grammar.preposition_verb()
    return f"{grammar.person()} {verb.past} {marked} {grammar.person()} {grammar.aside()}"


@paradigm("selection")
def of_an_animate_subject(grammar: Grammar) -> str:
    """[The nurse|The lamp] smiled in the kitchen."""
    subject = contrast(str(grammar.phrase(*PEOPLE)), str(grammar.phrase("thing", "food", "clothing")))
    frame = grammar.pick(("intransitive", "that", "infinitive"))
    verb = grammar.verb(frame).past
    if frame == "intransitive":
        return f"{subject} {verb} {grammar.manner_or_place()}"
    rest = f"that {grammar.clause()}" if frame == "that" else f"to {grammar.predicate().base}"
    return f"{subject} {verb} {rest}"


@paradigm("selection")
def of_an_experiencer(grammar: Grammar) -> str:
    """The letter annoyed [the nurse|the lamp]."""
    subject = grammar.phrase("document", "idea")
    right, wrong = grammar.phrase(*PEOPLE), grammar.phrase("thing", "food", "clothing", "vehicle")
    return f"{subject} {grammar.verb('psych').past} {contrast(str(right), str(wrong))} {grammar.aside()}"


@paradigm("selection")
def of_a_clause(grammar: Grammar) -> str:
    """The nurse wondered [whether|that] Mary met the king."""
    asking = grammar.chance()
    verbs = grammar.lexicon.verbs["whether" if asking else "that"]
    verb = grammar.pick([verb.past for verb in verbs if verb.base != "wonder"])  # one may marvel that …
    return f"{grammar.person()} {verb} {choose(asking, 'whether', 'that')} {grammar.clause()}"


@paradigm("selection")
def of_an_infinitive_or_gerund(grammar: Grammar) -> str:
    """The nurse decided [to sing|singing] quietly."""
    infinitive = grammar.chance()
    verb, event = grammar.verb("infinitive" if infinitive else "gerund"), grammar.predicate()
    marked = choose(infinitive, f"to {event.verb.base}", event.verb.gerund)
    return f"{grammar.person()} {verb.past} {marked} {event.rest}"


@paradigm("selection")
def of_a_bare_infinitive(grammar: Grammar) -> str:
    """The nurse made the king [|to] sing."""
    bare = grammar.chance()
    verb, event = grammar.verb("bare" if bare else "forcing"), grammar.predicate()
    return f"{grammar.person()} {verb.past} {grammar.person()} {choose(bare, '', 'to')} {event.base}"


@paradigm("selection")
def of_an_expletive_subject(grammar: Grammar) -> str:
    """There [seemed|tried] to be a lamp in the kitchen."""
    plural = grammar.chance()
    if grammar.chance(0.3):
        marked = contrast(str(grammar.person()), "there")
        return f"{marked} {grammar.verb('infinitive').past} to be {grammar.adjective('person')}"
    verbs = _two_verbs(grammar, "raising", "infinitive")
    thing = grammar.phrase(*OBJECTS, plural=plural, determiner="two" if plural else "a")
    return f"there {verbs} to be {thing} {grammar.place()}"


@paradigm("selection")
def of_an_expletive_object(grammar: Grammar) -> str:
    """The nurse [expected|persuaded] there to be a lamp in the kitchen."""
    if grammar.chance():
        marked = contrast(str(grammar.person()), "there")
        start = f"{grammar.person()} {grammar.verb('forcing').past}"
        return f"{start} {marked} to be {grammar.adjective('person')}"
    verbs = _two_verbs(grammar, "expecting", "forcing")
    thing = grammar.phrase(*OBJECTS, plural=False, determiner="a")
    return f"{grammar.person()} {verbs} there to be {thing} {grammar.place()}"


@paradigm("selection")
def of_a_verb_s_preposition(grammar: Grammar) -> str:
    """The nurse listened [to|from] the king."""
    verb, governor = grammar.pick(grammar.lexicon.verb_prepositions)
    marked = contrast(governor.right, governor.wrong)
    return f"{grammar.person()} {grammar.pick((verb.past, f'will {verb.base}'))} {marked} {grammar.person()}"


@paradigm("selection")
def of_an_adjective_s_preposition(grammar: Grammar) -> str:
    """The nurse was afraid [of|at] the king."""
    governor = grammar.pick(grammar.lexicon.adjective_prepositions)
    plural = grammar.chance(0.3)
    be = grammar.pick(("were", "are") if plural else ("was", "is"))
    feeling = (
        f"{grammar.pick(('very', 'often', ''))} {governor.word} {contrast(governor.right, governor.wrong)}"
    )
    return f"{grammar.person(plural)} {be} {feeling} {grammar.person()}"
