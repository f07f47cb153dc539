"""Paradigms of reflexives and case."""

from __future__ import annotations

from colakit.data.builtin.grammar import BESIDE, PRONOUNS, TIMES, Grammar, Phrase, choose, contrast
from colakit.data.builtin.lexicon import PEOPLE
from colakit.data.builtin.paradigms import paradigm


def _reflexive_verb(grammar: Grammar, subject: Phrase) -> str:
    verb = grammar.verb("reflexive")
    have = "have" if subject.plural else "has"
    return grammar.pick((verb.past, f"{have} {verb.participle}", f"will {verb.base}"))


@paradigm("reflexives")
def gender_of_the_antecedent(grammar: Grammar) -> str:
    """The aunt near John blamed [herself|himself]."""
    subject = grammar.gendered()
    other = grammar.gendered("man" if subject.pronoun == "she" else "woman")
    where = f"{grammar.pick(BESIDE)} {other}" if subject.text != subject.head else ""
    verb = _reflexive_verb(grammar, subject)
    wrong = "himself" if subject.pronoun == "she" else "herself"
    return f"{subject} {where} {verb} {contrast(subject.reflexive, wrong)} {grammar.manner()}"


@paradigm("reflexives")
def number_of_the_antecedent(grammar: Grammar) -> str:
    """The nurses that met John blamed [themselves|himself]."""
    several, one = grammar.chance(), grammar.gendered()
    many = grammar.phrase(*PEOPLE, plural=True)
    subject, other = (many, one) if several else (grammar.phrase("man", "woman", plural=False), many)
    marked = contrast(subject.reflexive, other.reflexive)
    relative = f"who {grammar.verb('social').past} {other}"
    return f"{subject} {relative} {grammar.verb('reflexive').past} {marked}"


@paradigm("reflexives")
def person_of_the_antecedent(grammar: Grammar) -> str:
    """We blamed [ourselves|myself]."""
    subject, verb = grammar.pick(list(PRONOUNS)), grammar.verb("reflexive")
    own = PRONOUNS[subject][2]
    how = grammar.pick((verb.past, f"did not {verb.base}", f"must {verb.base}", f"could {verb.base}"))
    other = grammar.pick([forms[2] for forms in PRONOUNS.values() if forms[2] != own])
    return f"{subject} {how} {contrast(own, other)} {grammar.aside()}"


@paradigm("reflexives")
def the_nearest_subject_binds(grammar: Grammar) -> str:
    """Mary thought that John blamed [himself|herself]."""
    outer = grammar.gendered()
    inner = grammar.gendered("man" if outer.pronoun == "she" else "woman")
    start = f"{outer} {grammar.verb('that').past} that"
    return f"{start} {inner} {_reflexive_verb(grammar, inner)} {contrast(inner.reflexive, outer.reflexive)}"


@paradigm("reflexives")
def a_neighbor_does_not_bind(grammar: Grammar) -> str:
    """The queen near the kings blamed [herself|themselves]."""
    subject = grammar.definite("man", "woman", plural=grammar.chance())
    gender = "man" if subject.pronoun == "she" else "woman"
    other = grammar.name(gender) if subject.plural else grammar.definite(*PEOPLE, plural=True)
    start = f"{subject} {grammar.pick(BESIDE)} {other} {_reflexive_verb(grammar, subject)}"
    return f"{start} {contrast(subject.reflexive, other.reflexive)}"


@paradigm("reflexives")
def a_subject_is_no_reflexive(grammar: Grammar) -> str:
    """Mary thought that [she|herself] smiled."""
    subject = grammar.person()
    own = subject.reflexive
    if grammar.chance():
        start = f"{subject} {grammar.verb('that').past} that"
        return f"{start} {contrast(subject.pronoun, own)} {grammar.predicate().past}"
    return f"{subject} {grammar.verb('reflexive').past} {contrast(own, subject.pronoun)} {grammar.aside()}"


def _case(grammar: Grammar, subject: bool) -> str:
    """Mark of a pronoun in the right and the wrong case."""
    pronoun = grammar.pick([pronoun for pronoun in PRONOUNS if pronoun != "you"])
    return choose(subject, pronoun, PRONOUNS[pronoun][0])


@paradigm("case")
def of_a_subject(grammar: Grammar) -> str:
    """Mary said that [she|her] met the king."""
    start = (
        f"{grammar.person()} {grammar.verb('that').past} that" if grammar.chance() else grammar.pick(TIMES)
    )
    return f"{start} {_case(grammar, True)} {grammar.predicate().past}"


@paradigm("case")
def of_an_object(grammar: Grammar) -> str:
    """The king met [her|she] in the garden."""
    verb = grammar.person_verb()
    form = grammar.pick((verb.past, f"will {verb.base}"))
    return f"{grammar.person()} {form} {_case(grammar, False)} {grammar.aside()}"


@paradigm("case")
def after_a_preposition(grammar: Grammar) -> str:
    """The king gave the lamp to [her|she]."""
    if grammar.chance():
        verb = grammar.verb("dative")
        giving = f"{grammar.person()} {verb.past} {grammar.phrase('document', 'thing')}"
        return f"{giving} to {_case(grammar, False)}"
    verb, governor = grammar.pick(grammar.lexicon.verb_prepositions)
    return f"{grammar.person()} {verb.past} {governor.right} {_case(grammar, False)} {grammar.aside()}"


@paradigm("case")
def of_an_infinitive_s_subject(grammar: Grammar) -> str:
    """The king persuaded [her|she] to sing."""
    verb = grammar.verb("expecting", "forcing")
    return f"{grammar.person()} {verb.past} {_case(grammar, False)} to {grammar.predicate().base}"


@paradigm("case")
def of_a_possessor(grammar: Grammar) -> str:
    """The king dropped [my|me] lamp."""
    pronoun = grammar.pick([pronoun for pronoun in PRONOUNS if pronoun not in ("she", "you")])
    oblique, own, _ = PRONOUNS[pronoun]
    if grammar.chance(0.3):
        giving = grammar.verb("dative").past
        return f"{grammar.person()} {giving} {contrast(oblique, own)} {grammar.phrase('document', 'thing')}"
    verb, kind = grammar.object_verb()
    noun = grammar.modified(grammar.noun(kind), False)  # a plural could be what somebody is bought
    return f"{grammar.person()} {verb.past} {contrast(own, oblique)} {noun} {grammar.aside()}"


@paradigm("case")
def who_or_whose(grammar: Grammar) -> str:
    """The nurse [whose|who] sister met the king smiled."""
    possessive = grammar.chance()
    head = grammar.phrase(*PEOPLE)
    owned = grammar.noun("man", "woman").singular if possessive else ""
    inside = f"{owned} {grammar.verb('social').past} {grammar.person()}"
    return f"{head} {choose(possessive, 'whose', 'who')} {inside} {grammar.predicate().past}"
