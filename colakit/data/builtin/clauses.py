"""Paradigms of questions, wh-gaps, islands and negative polarity."""

from __future__ import annotations

from colakit.data.builtin.grammar import QUESTION_AUXILIARIES, Grammar, choose, contrast, swapped
from colakit.data.builtin.lexicon import PEOPLE
from colakit.data.builtin.paradigms import paradigm, question


@question("questions")
def inversion(grammar: Grammar) -> str:
    """What [did the nurse|the nurse did] repair?"""
    verb, _ = grammar.object_verb()
    subject, where = grammar.person(), grammar.aside()
    auxiliary = grammar.pick(("did", "will", "should", "could"))
    word = grammar.pick(("what", f"which {grammar.noun('thing').plural}"))
    return f"{word} {swapped(auxiliary, str(subject))} {verb.base} {where}"


@paradigm("questions")
def no_inversion_inside(grammar: Grammar) -> str:
    """Mary wondered what [the nurse had|had the nurse] repaired."""
    verb, _ = grammar.object_verb()
    subject, event = grammar.person(), grammar.predicate()
    main = f"{grammar.person()} {grammar.verb('whether').past}"
    word, auxiliary, rest = grammar.pick(
        (
            ("what", "had", verb.participle),
            ("what", "would", verb.base),
            ("when", "had", event.participle),
            ("when", "would", event.base),
        )
    )
    return f"{main} {word} {swapped(str(subject), auxiliary)} {rest}"


@question("questions")
def the_main_verb_is_fronted(grammar: Grammar) -> str:
    """[Is|Was] the nurse who [was tall|tall is] smiling?"""
    subject, event = grammar.phrase(*PEOPLE, plural=False), grammar.predicate()
    main, inner = grammar.two(("is", "was"))
    adjective = grammar.adjective("person")
    marked = contrast(f"{inner} {adjective}", f"{adjective} {main}")
    return f"{contrast(main, inner)} {subject} who {marked} {event.gerund}"


@question("questions")
def tense_stands_once(grammar: Grammar) -> str:
    """Did the nurse [repair|repaired] the car?"""
    subject, event = grammar.person(False), grammar.predicate()
    did = grammar.chance(0.6)
    auxiliary = grammar.pick(("did", "does")) if did else grammar.pick(("has", "had"))
    return f"{auxiliary} {subject} {choose(did, event.verb.base, event.verb.participle)} {event.rest}"


@paradigm("wh-gaps")
def what_needs_a_gap(grammar: Grammar) -> str:
    """Mary heard [what|that] the nurse repaired; Mary heard [that|what] the nurse repaired the car."""
    verb, kind = grammar.object_verb()
    knew, gap = grammar.pick(("heard", "saw")), grammar.chance()
    between = f"{grammar.person()} said" if grammar.chance(0.4) else ""
    filled = "" if gap else str(grammar.phrase(kind))
    start = f"{grammar.person()} {knew} {choose(gap, 'what', 'that')} {between}"
    return f"{start} {grammar.person()} {verb.past} {filled} {grammar.aside()}"


@paradigm("wh-gaps")
def a_gap_is_not_filled(grammar: Grammar) -> str:
    """The lamp that the nurse found [|it] was heavy."""
    verb, kind = grammar.object_verb()
    plural = grammar.chance(0.4)
    head = grammar.definite(kind, plural=plural)
    pronoun, be = ("them", "were") if plural else ("it", "was")
    inside = f"{grammar.person()} {verb.past}"
    if grammar.chance(0.4):
        main = f"{head} {be} {grammar.adjective('food')}, so"
        return f"{main} {inside} {contrast(pronoun, '')} {grammar.aside()}"
    return f"{head} that {inside} {contrast('', pronoun)} {grammar.aside()} {be} {grammar.adjective('food')}"


@paradigm("wh-gaps")
def who_or_which(grammar: Grammar) -> str:
    """The lamp [which|who] broke was heavy."""
    if grammar.chance():
        head, inside = grammar.phrase(*PEOPLE), grammar.predicate().past
        return f"{head} {contrast('who', 'which')} {inside} {grammar.predicate().past}"
    plural = grammar.chance(0.4)
    head = grammar.definite("thing", plural=plural)
    inside = f"{contrast('which', 'who')} {grammar.verb('alternating', 'vanishing').past} {grammar.aside()}"
    return f"{head} {inside} {'were' if plural else 'was'} {grammar.adjective('thing')}"


@question("wh-gaps")
def a_stranded_preposition(grammar: Grammar) -> str:
    """Which king did Mary listen [to|]? Which king did Mary praise [|to]?"""
    noun, subject = grammar.modified(grammar.noun(*PEOPLE), grammar.chance()), grammar.person()
    verb, marked = grammar.preposition_verb()
    return f"which {noun} {grammar.pick(('did', 'should', 'will'))} {subject} {verb.base} {marked}"


@question("islands")
def adjuncts(grammar: Grammar) -> str:
    """Who did Mary praise [|John] before meeting [John|]?"""
    one, other = grammar.verb("reflexive"), grammar.verb("social")
    subject, person = grammar.person(), str(grammar.person())
    link = grammar.pick(("before", "after", "without", "while"))
    main = f"who {grammar.pick(QUESTION_AUXILIARIES)} {subject} {one.base} {contrast('', person)}"
    return f"{main} {link} {other.gerund} {contrast(person, '')}"


@question("islands")
def coordinations(grammar: Grammar) -> str:
    """What did [Mary and John find|Mary find John and]?"""
    verb, one, other = grammar.person_verb().base, grammar.person(), grammar.person()
    marked = contrast(f"{one} and {other} {verb}", f"{one} {verb} {other} and")
    return f"who {grammar.pick(QUESTION_AUXILIARIES)} {marked}"


@question("islands")
def relative_clauses(grammar: Grammar) -> str:
    """Who did the nurse who met [John praise|praise John]?"""
    head, person = grammar.phrase(*PEOPLE), str(grammar.person())
    inner, outer = grammar.verb("social"), grammar.verb("reflexive")
    auxiliary = grammar.pick(QUESTION_AUXILIARIES)
    return f"who {auxiliary} {head} who {inner.past} {swapped(person, outer.base)}"


@question("islands")
def embedded_questions(grammar: Grammar) -> str:
    """What did Mary hear [he|who] repaired?"""
    verb, _ = grammar.object_verb()
    marked = contrast(grammar.pick(("he", "she", "we", "they")), "who")
    return f"what did {grammar.person()} {grammar.pick(('hear', 'say'))} {marked} {verb.past}"


@question("islands")
def complex_noun_phrases(grammar: Grammar) -> str:
    """What did Mary hear [|the rumor] that John repaired [|the car]?"""
    verb, kind = grammar.object_verb()
    subject, other = grammar.person(), grammar.person()
    heard = grammar.pick(("the rumor", "the news"))
    if grammar.chance():
        thing = str(grammar.phrase(kind))
        return f"did {subject} hear {heard} that {other} {verb.past} {contrast(thing, '')}"
    return f"what did {subject} hear {contrast('', heard)} that {other} {verb.past}"


@question("islands")
def left_branches(grammar: Grammar) -> str:
    """Which [car did Mary|did Mary] repair [|car]?"""
    verb, kind = grammar.object_verb()
    noun = grammar.noun(kind).form(grammar.chance())
    word, subject, auxiliary = (
        grammar.pick(("which", "whose")),
        grammar.person(),
        grammar.pick(QUESTION_AUXILIARIES),
    )
    return f"{word} {contrast(noun, '')} {auxiliary} {subject} {verb.base} {contrast('', noun)}"


@paradigm("negative polarity")
def a_negative_subject(grammar: Grammar) -> str:
    """[No|Every] nurse near the king has ever smiled."""
    right, wrong = grammar.pick(("no", "hardly any")), grammar.pick(("the", "every", "some", "this"))
    subject = grammar.modified(grammar.noun(*PEOPLE), False)
    near = f"{grammar.pick(('near', 'behind'))} {grammar.definite(*PEOPLE, 'place')}"
    start, participle = f"{subject} {near if grammar.chance() else ''} has", grammar.predicate().participle
    if grammar.chance(0.4):
        return f"{wrong} {start} {contrast('always', 'ever')} {participle}"
    return f"{contrast(right, wrong)} {start} ever {participle}"


@paradigm("negative polarity")
def a_negation_too_deep(grammar: Grammar) -> str:
    """[No|The] nurse that [the|no] king met has ever smiled."""
    one, other = (grammar.modified(grammar.noun(*PEOPLE), False) for _ in range(2))
    determiner, verb = grammar.pick(("the", "this", "that", "my")), grammar.person_verb()
    relative = f"who {contrast(determiner, 'no')} {other} {verb.past}"
    return f"{contrast('no', determiner)} {one} {relative} has ever {grammar.predicate().participle}"


@paradigm("negative polarity")
def ever_after_an_adverb(grammar: Grammar) -> str:
    """The nurse did [not|then] drop any lamps; the nurse has [never|often] dropped any lamps."""
    verb, kind = grammar.object_verb()
    things = grammar.modified(grammar.noun(kind), True)
    wrong, right = grammar.pick(("always", "often", "just")), grammar.pick(("never", "rarely", "not"))
    have, form = ("has", verb.participle) if grammar.chance() else ("will", verb.base)
    if grammar.chance(0.4):
        return f"{grammar.person(False)} {have} {wrong} {form} {contrast('some', 'any')} {things}"
    return f"{grammar.person(False)} {have} {contrast(right, wrong)} {form} any {things}"


@paradigm("negative polarity", framed=False)
def ever_in_a_condition(grammar: Grammar) -> str:
    """[If|Because] the nurse ever smiles, the king will sing."""
    subject, event = grammar.person(False), grammar.predicate()
    result = f"{grammar.person()} will {grammar.predicate().base}"
    if grammar.chance(0.4):
        word = grammar.pick(("always", "often"))
        return f"because {subject} {contrast(word, 'ever')} {event.third}, {result}"
    return f"{contrast('if', 'because')} {subject} ever {event.third}, {result}"


@paradigm("negative polarity")
def not_yet(grammar: Grammar) -> str:
    """The nurse has [not|just] met the king yet."""
    subject, event = grammar.person(False), grammar.predicate()
    wrong = grammar.pick(("just", "often", "always"))
    if grammar.chance(0.4):
        return f"{subject} has {wrong} {event.participle} {contrast('', 'yet')}"
    return f"{subject} has {contrast('not', wrong)} {event.participle} yet"
