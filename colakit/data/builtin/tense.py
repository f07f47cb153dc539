"""Paradigms of auxiliaries, tense and aspect."""

from __future__ import annotations

from colakit.data.builtin.grammar import AUXILIARIES, Grammar, choose, contrast, swapped
from colakit.data.builtin.lexicon import OBJECTS
from colakit.data.builtin.paradigms import paradigm


@paradigm("auxiliaries")
def in_order(grammar: Grammar) -> str:
    """The nurse [might have|have might] praised the king."""
    subject, event, modal = grammar.person(False), grammar.predicate(), grammar.pick(AUXILIARIES[2:])
    progressives = ((modal, "be", event.gerund), ("has", "been", event.gerund), ("had", "been", event.gerund))
    one, other, verb = grammar.pick(((modal, "have", event.participle), *progressives))
    return f"{subject} {swapped(one, other)} {verb}"


@paradigm("auxiliaries")
def form_after_a_modal(grammar: Grammar) -> str:
    """The nurse must [praise|praised] the king; the nurse has [praised|praise] the king."""
    subject, event = grammar.person(False), grammar.predicate()
    modal = grammar.chance()
    auxiliary = grammar.pick(AUXILIARIES) if modal else grammar.pick(("has", "had"))
    verb = event.verb
    if grammar.chance():
        return f"{subject} {auxiliary} {choose(modal, verb.base, verb.participle)} {event.rest}"
    wrong = grammar.pick((verb.third, verb.gerund))
    return f"{subject} {auxiliary} {contrast(verb.base if modal else verb.participle, wrong)} {event.rest}"


@paradigm("auxiliaries")
def form_after_do(grammar: Grammar) -> str:
    """The nurse did not [praise|praised] the king; the nurse had not [praised|praise] the king."""
    subject, event = grammar.person(False), grammar.predicate()
    do = grammar.chance(0.6)
    auxiliary = grammar.pick(("did", "does")) if do else "had"
    return f"{subject} {auxiliary} not {choose(do, event.verb.base, event.verb.participle)} {event.rest}"


@paradigm("auxiliaries")
def place_of_not(grammar: Grammar) -> str:
    """The nurse [did not|not did] praise the king."""
    subject, event = grammar.person(False), grammar.predicate()
    word = grammar.pick(("did", "has", "will", "was", "should"))
    verb = {"has": event.participle, "was": event.gerund}.get(word, event.base)
    return f"{subject} {swapped(word, 'not')} {verb}"


@paradigm("auxiliaries")
def progressives(grammar: Grammar) -> str:
    """The nurse was [praising|praised] the king; the nurse has [praised|praising] the king."""
    subject, event = grammar.person(False), grammar.predicate()
    going_on = grammar.chance(0.6)
    auxiliary = grammar.pick(("is", "was")) if going_on else "has"
    return f"{subject} {auxiliary} {choose(going_on, event.verb.gerund, event.verb.participle)} {event.rest}"


@paradigm("tense and aspect", framed=False)
def time_and_tense(grammar: Grammar) -> str:
    """[Yesterday|Tomorrow] the nurse praised the king."""
    subject, event, past = grammar.person(), grammar.predicate(), grammar.chance()
    times = (("yesterday", "tomorrow"), ("last week", "next week"), ("last month", "next month"))
    time = choose(past, *grammar.pick(times))
    verb = event.past if past else f"will {event.base}"
    return f"{time} {subject} {verb}" if grammar.chance() else f"{subject} {verb} {time}"


@paradigm("tense and aspect")
def states_are_not_in_progress(grammar: Grammar) -> str:
    """The nurse [owns|is owning] the lamp."""
    plural = grammar.chance(0.4)
    verb, subject = grammar.verb("stative"), grammar.person(plural)
    be = "are" if plural else "is"
    if grammar.chance(0.4):
        event = grammar.predicate()
        state = f"{be} {verb.gerund} {grammar.phrase(*OBJECTS)}"
        return f"{subject} {contrast(f'{be} {event.gerund}', state)} now"
    marked = contrast(verb.base if plural else verb.third, f"{be} {verb.gerund}")
    return f"{subject} {marked} {grammar.phrase(*OBJECTS)}"


@paradigm("tense and aspect", framed=False)
def perfect_or_past(grammar: Grammar) -> str:
    """The nurse [praised|has praised] the king last week; she [has been|is] praising him since."""
    subject, time = grammar.person(False), grammar.pick(("last week", "last month", "last year"))
    event = grammar.predicate()
    if grammar.chance():
        return f"{subject} {contrast(event.past, f'has {event.participle}')} {time}"
    return f"{subject} {contrast('has been', 'is')} {event.gerund} since {time}"


@paradigm("tense and aspect", framed=False)
def sequence_of_tenses(grammar: Grammar) -> str:
    """While the king was smiling, the nurse [sang|sings]."""
    other = grammar.predicate()
    subject, event, someone = grammar.person(False), grammar.predicate(), grammar.person(False)
    past = grammar.chance()
    background = f"{grammar.pick(('while', 'when'))} {someone} {'was' if past else 'is'} {other.gerund},"
    other_tense = event.verb.third if past else f"{grammar.pick(('will', 'must'))} {event.verb.base}"
    return f"{background} {subject} {choose(past, event.verb.past, other_tense)} {event.rest}"


@paradigm("tense and aspect", framed=False)
def after_before(grammar: Grammar) -> str:
    """The nurse will sing before the king [smiles|smiled]."""
    subject, event = grammar.person(), grammar.predicate()
    someone, other = grammar.person(False), grammar.predicate()
    past = grammar.chance()
    verb = choose(past, other.verb.past, other.verb.third)
    when = grammar.pick(("before", "after"))
    return f"{subject} {event.past if past else f'will {event.base}'} {when} {someone} {verb} {other.rest}"
