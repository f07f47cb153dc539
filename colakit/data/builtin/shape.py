"""Paradigms of ellipsis, word order, comparison, coordination and existentials."""

from __future__ import annotations

from colakit.data.builtin.grammar import PLACES, Grammar, Predicate, choose, contrast, swapped
from colakit.data.builtin.lexicon import OBJECTS, PEOPLE, comparative
from colakit.data.builtin.paradigms import paradigm, question

# (right, wrong) auxiliaries for an elided verb phrase
MISMATCHES = (("did", "was"), ("has", "was"), ("will", "was"), ("was", "has"), ("was", "has"))


def _with_auxiliary(auxiliary: str, event: Predicate) -> str:
    """A predicate that `auxiliary` can replace."""
    if auxiliary == "did":
        return event.past
    form = {"has": event.participle, "was": event.gerund}.get(auxiliary, event.base)
    return f"{auxiliary} {form}"


@paradigm("ellipsis", framed=False)
def of_a_verb_phrase(grammar: Grammar) -> str:
    """The nurse has smiled, and the king [has|did] too."""
    right, wrong = grammar.pick(MISMATCHES)
    one, other, event = grammar.person(False), grammar.person(False), grammar.predicate()
    start = f"{grammar.name()} said that" if grammar.chance(0.3) else ""
    link, end = ("and", "too") if grammar.chance() else ("but", "not")
    return f"{start} {one} {_with_auxiliary(right, event)}, {link} {other} {contrast(right, wrong)} {end}"


@question("ellipsis")
def of_a_tag(grammar: Grammar) -> str:
    """The nurses praised John, didn't [they|he]?"""
    auxiliary, wrong = grammar.two(("did", "was", "has"))
    event, subject = grammar.predicate(), grammar.gendered()
    start = f"{subject} {_with_auxiliary(auxiliary, event)},"
    if grammar.chance():
        return f"{start} {contrast(auxiliary, wrong)}n't {subject.pronoun}"
    return f"{start} {auxiliary}n't {contrast(subject.pronoun, 'she' if subject.pronoun == 'he' else 'he')}"


@paradigm("ellipsis", framed=False)
def of_a_noun(grammar: Grammar) -> str:
    """Mary found a heavy lamp, and John found a red [one|ones]."""
    verb, kind = grammar.object_verb()
    noun = grammar.noun(kind)
    plural = grammar.chance()
    one, other = grammar.two(grammar.lexicon.adjectives["thing"])
    word, second = grammar.two(("two", "several", "three", "some")) if plural else ("a", "a")
    start = f"{grammar.person()} {verb.past} {word} {one} {noun.form(plural)}"
    return f"{start}, and {grammar.person()} {verb.past} {second} {other} {choose(plural, 'ones', 'one')}"


@paradigm("ellipsis", framed=False)
def of_a_question(grammar: Grammar) -> str:
    """Mary found something, but John did not say [what|who]."""
    thing = grammar.chance()
    verb = grammar.object_verb()[0] if thing else grammar.person_verb()
    start = f"{grammar.person()} {verb.past} {'something' if thing else 'someone'} {grammar.aside()}"
    ending = f"{grammar.person()} {grammar.pick(('did not', 'will not', 'could not'))} say"
    return f"{start}, but {ending} {choose(thing, 'what', 'who')}"


@paradigm("ellipsis", framed=False)
def so_and_neither(grammar: Grammar) -> str:
    """The nurse smiled, and so [did|was] the king; she will not smile, and [neither|so] will he."""
    right, wrong = grammar.pick(MISMATCHES)
    one, other, event = grammar.person(False), grammar.person(False), grammar.predicate()
    if grammar.chance():
        return f"{one} {_with_auxiliary(right, event)}, and so {contrast(right, wrong)} {other}"
    negative = grammar.chance()
    start = f"will {'not' if negative else ''} {event.base}"
    return f"{one} {start}, and {choose(negative, 'neither', 'so')} will {other}"


@paradigm("word order")
def of_adjective_and_noun(grammar: Grammar) -> str:
    """The [tall nurse|nurse tall] smiled."""
    noun, plural = grammar.noun(*PEOPLE), grammar.chance(0.4)
    adjective = grammar.adjective(noun.kind)
    word = grammar.pick(("the", "these", "two") if plural else ("the", "a", "this"))
    phrase = f"{word} {swapped(adjective, noun.form(plural))}"
    if grammar.chance():
        return f"{phrase} {grammar.predicate().past}"
    return f"{grammar.person()} {grammar.person_verb().past} {phrase} {grammar.aside()}"


@paradigm("word order")
def of_an_adverb(grammar: Grammar) -> str:
    """The nurse [quickly repaired|repaired quickly] the car."""
    verb, kind = grammar.object_verb()
    adverb = grammar.manner()
    form, before = grammar.pick(((verb.past, ""), (verb.participle, "has"), (verb.base, "will")))
    thing = grammar.phrase(kind)
    return f"{grammar.person(False)} {before} {swapped(adverb, form)} {thing}"


@paradigm("word order")
def of_a_particle(grammar: Grammar) -> str:
    """The nurse picked [it up|up it]; the nurse picked [up the lamp|the up lamp]."""
    verb, particle = grammar.pick(grammar.lexicon.particles)
    thing = grammar.noun("thing", "document", "clothing").form(grammar.chance(0.4))
    pronoun = grammar.pick(("it", "them"))
    form = grammar.pick((verb.past, f"will {verb.base}", f"did not {verb.base}"))
    is_noun = grammar.chance(0.3)
    marked = f"{swapped(particle, 'the')} {thing}" if is_noun else swapped(pronoun, particle)
    return f"{grammar.person(False)} {form} {marked} {grammar.aside()}"


@paradigm("word order")
def of_determiners(grammar: Grammar) -> str:
    """[All the|The all] nurses smiled."""
    noun = grammar.modified(grammar.noun(*PEOPLE), True)
    orders = "all the, both the, these two, my three, the many, all these"
    first, second = grammar.pick(orders.split(", ")).split()
    return f"{swapped(first, second)} {noun} {grammar.predicate().past}"


@paradigm("word order")
def of_a_degree(grammar: Grammar) -> str:
    """The nurse was [rich enough|enough rich] to buy the car; it was [such a|a such] heavy lamp."""
    subject, event = grammar.person(False), grammar.predicate()
    adjective = grammar.adjective("person")
    be = grammar.pick(("is", "was"))
    if grammar.chance():
        return f"{subject} {be} {contrast(f'{adjective} enough', f'enough {adjective}')} to {event.base}"
    noun = grammar.noun("person").singular
    return f"{subject} {be} {contrast('such a', 'a such')} {adjective} {noun}"


@paradigm("word order")
def of_a_preposition(grammar: Grammar) -> str:
    """The nurse smiled [in the|the in] garden."""
    marked = swapped(grammar.pick(PLACES), "the")
    noun = grammar.modified(grammar.noun("place"), False, 0.3)
    return f"{grammar.person()} {grammar.predicate().past} {marked} {noun}"


@paradigm("comparison")
def than_or_as(grammar: Grammar) -> str:
    """The nurse is taller [than|as] the king; the nurse is as tall [as|than] the king."""
    adjective = grammar.pick(grammar.lexicon.adjectives["short"])
    subject, other, more = grammar.person(False), grammar.person(), grammar.chance()
    degree = comparative(adjective) if more else f"as {adjective}"
    be = grammar.pick(("is", "was", "must be"))
    return f"{subject} {be} {degree} {choose(more, 'than', 'as')} {other}"


@paradigm("comparison")
def of_the_adjective(grammar: Grammar) -> str:
    """The nurse is [taller|tall] than the king; the nurse is as [tall|taller] as the king."""
    adjective = grammar.pick(grammar.lexicon.adjectives["short"])
    subject, other, more = grammar.person(False), grammar.person(), grammar.chance()
    start = f"{subject} {grammar.pick(('is', 'was', 'must be'))} {'' if more else 'as'}"
    return f"{start} {choose(more, comparative(adjective), adjective)} {'than' if more else 'as'} {other}"


@paradigm("comparison")
def with_more(grammar: Grammar) -> str:
    """The nurse is [|more] taller than the king; the nurse is [more|] careful than the king."""
    long = grammar.chance()
    subject, other = grammar.person(False), grammar.person()
    adjectives = grammar.lexicon.adjectives
    word = grammar.pick(adjectives["long"]) if long else comparative(grammar.pick(adjectives["short"]))
    return f"{subject} {grammar.pick(('is', 'was'))} {choose(long, 'more', '')} {word} than {other}"


@paradigm("coordination")
def of_correlatives(grammar: Grammar) -> str:
    """[Both|Either] the nurse and the king smiled."""
    first, link, others = grammar.pick(
        (
            ("both", "and", ("either", "neither")),
            ("either", "or", ("both",)),
            ("neither", "nor", ("both", "either")),
        )
    )
    one, other = grammar.person(), grammar.person()
    pair = f"{contrast(first, grammar.pick(others))} {one} {link} {other}"
    if grammar.chance():
        return f"{pair} {grammar.predicate().past}"
    return f"{grammar.person()} {grammar.person_verb().past} {pair}"


@paradigm("coordination")
def of_like_forms(grammar: Grammar) -> str:
    """The nurse enjoyed dancing and [singing|sing] in the garden."""
    infinitive = grammar.chance()
    one, other = grammar.two(grammar.lexicon.verbs["intransitive"])
    start = f"{grammar.person()} {grammar.verb('infinitive' if infinitive else 'gerund').past}"
    first = f"to {one.base}" if infinitive else one.gerund
    second = choose(infinitive, other.base, other.gerund)
    return f"{start} {first} {grammar.manner()} and {second} {grammar.place()}"


@paradigm("coordination")
def of_like_tenses(grammar: Grammar) -> str:
    """The nurse has praised the king and [found|finding] the lamp."""
    subject, one, other = grammar.person(False), grammar.predicate(), grammar.predicate()
    start, right, wrong = grammar.pick(
        (
            (f"will {one.base}", other.verb.base, other.verb.gerund),
            (f"was {one.gerund}", other.verb.gerund, other.verb.base),
            (f"has {one.participle}", other.verb.participle, other.verb.gerund),
        )
    )
    return f"{subject} {start} and {contrast(right, wrong)} {other.rest}"


@paradigm("existentials")
def no_strong_determiner(grammar: Grammar) -> str:
    """There was [a|every] lamp in the kitchen; [every|there was a] ..."""
    plural = grammar.chance()
    right, wrong = grammar.pick(
        (("two", "both"), ("some", "all"), ("many", "all the"), ("several", "most"))
        if plural
        else (("a", "every"), ("a", "each"))
    )
    noun = grammar.modified(grammar.noun("person", "animal", *OBJECTS), plural)
    return f"there {'were' if plural else 'was'} {contrast(right, wrong)} {noun} {grammar.place()}"


@paradigm("existentials")
def there_or_it(grammar: Grammar) -> str:
    """[There|It] were two lamps in the kitchen; [it|there] was clear that Mary smiled."""
    existential = grammar.chance()
    if existential:
        things = grammar.phrase(*OBJECTS, plural=True, determiner=grammar.pick(("two", "several", "some")))
        rest = f"{grammar.pick(('were', 'are'))} {things} {grammar.place()}"
    else:
        rest = f"{grammar.pick(('was', 'is'))} clear that {grammar.clause()}"
    return f"{choose(existential, 'there', 'it')} {rest}"
