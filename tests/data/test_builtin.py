"""The built-in corpus: fixed bytes, no shared words between id and ood, and a rule for every paradigm.

The rules are independent of the grammar: their input is two sentences and the lexicon.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from colakit.data.builtin.corpus import (
    PARADIGMS,
    SIZES,
    VERSION,
    builtin_corpus,
    builtin_pairs,
    serialised,
    write_builtin,
)
from colakit.data.builtin.grammar import PRONOUNS, Grammar, expand
from colakit.data.builtin.lexicon import CLOSED, POOLS, load_lexicon, noun, verb
from colakit.data.builtin.paradigms import REGISTER, Paradigm
from colakit.data.corpora import load_corpus

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
PINNED = {1: "3c1871a675c520baedbe5728da59c78ea6c39659c5526d499023ce64860be0c0"}
POOL_OF = {"train": "id", "id_dev": "id", "ood_dev": "ood"}


def tokens(sentence: str) -> list[str]:
    return re.findall(r"[a-z']+", sentence.lower())


# --- the corpus ---------------------------------------------------------------------------------------------


def test_a_version_has_fixed_bytes() -> None:
    text = json.dumps(serialised(builtin_corpus()), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == PINNED[VERSION], "the corpus changed: raise VERSION, and pin the new text under it"


def test_drawing_again_gives_the_same_pairs() -> None:
    first = builtin_pairs()
    builtin_pairs.cache_clear()
    assert builtin_pairs() == first


def test_splits_have_the_stated_sizes_and_70_percent_acceptable() -> None:
    corpus = builtin_corpus()
    assert {name: len(split) for name, split in corpus.splits.items()} == SIZES
    for split in corpus.splits.values():
        assert 0.68 <= split.require_labels().mean() <= 0.72
        assert len(set(split.sources)) == 17


def test_all_sentences_of_all_pairs_are_distinct() -> None:
    members = [text for pair in builtin_pairs() for text in (pair.sentence_good, pair.sentence_bad)]
    assert len(set(members)) == len(members)


def test_no_open_class_word_of_ood_dev_is_in_train() -> None:
    known, unknown = (load_lexicon(pool).forms() for pool in POOLS)
    assert len(known) + len(unknown) > 1000
    assert not known & unknown
    assert not (known | unknown) & CLOSED
    for pair in builtin_pairs():
        allowed = (known if POOL_OF[pair.split] == "id" else unknown) | CLOSED
        assert set(tokens(f"{pair.sentence_good} {pair.sentence_bad}")) <= allowed


def test_train_contains_nearly_every_word_of_id_dev() -> None:
    train, dev = (
        Counter(word for text in builtin_corpus().splits[name].sentences for word in tokens(text))
        for name in ("train", "id_dev")
    )
    assert sum(count for word, count in dev.items() if word not in train) < 0.01 * dev.total()


def test_sentences_have_capital_spaces_article_and_end_mark() -> None:
    for pair in builtin_pairs():
        for text in (pair.sentence_good, pair.sentence_bad):
            assert re.fullmatch(r"[A-Z][A-Za-z' ,]*[a-zI][.?]", text), text
            assert "  " not in text
            assert " ," not in text
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text


def test_a_bag_of_words_model_is_near_chance() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import matthews_corrcoef

    train, dev = (builtin_corpus().splits[name] for name in ("train", "id_dev"))
    counter = CountVectorizer(analyzer=tokens).fit(train.sentences)

    def features(texts: tuple[str, ...]) -> np.ndarray:
        lengths = [[len(tokens(text)) / 10] for text in texts]
        return np.hstack([counter.transform(texts).toarray(), lengths])

    model = LogisticRegression(max_iter=3000).fit(features(train.sentences), train.require_labels())
    assert matthews_corrcoef(dev.require_labels(), model.predict(features(dev.sentences))) < 0.15


def test_written_files_round_trip(tmp_path: Path, colakit: Run) -> None:
    code, out, err = colakit("data", "write", "--data", "builtin", "--out", tmp_path / "corpus", "--json")
    assert code == 0, err
    assert json.loads(out)["version"] == VERSION
    made, read = builtin_corpus(), load_corpus(tmp_path / "corpus")
    assert read.label_names == made.label_names
    assert list(read.splits) == list(made.splits)
    for name, split in made.splits.items():
        assert read.splits[name].fingerprint() == split.fingerprint()
        assert read.splits[name].sources == split.sources
    rows = (tmp_path / "corpus/in_domain_train.tsv").read_text().splitlines()
    assert {tuple(row.split("\t")[1:3]) for row in rows} == {("1", ""), ("0", "*")}
    pairs = [json.loads(line) for line in (tmp_path / "corpus/pairs.jsonl").read_text().splitlines()]
    shown = {pair["sentence_good" if pair["shown"] else "sentence_bad"] for pair in pairs}
    assert shown == {*made.splits["id_dev"].sentences, *made.splits["ood_dev"].sentences}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_builtin(tmp_path / "one")
    write_builtin(tmp_path / "two")
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 4


@pytest.mark.parametrize("name", ["builtin", "builtin:"])
def test_data_check_accepts_the_builtin_name(name: str, colakit: Run) -> None:
    code, out, err = colakit("data", "check", "--data", name, "--strict", "--json")
    assert code == 0, err
    assert [split["rows"] for split in json.loads(out)["splits"]] == list(SIZES.values())


def test_a_dry_run_writes_nothing(tmp_path: Path, colakit: Run) -> None:
    code, out, _ = colakit("data", "write", "--data", "builtin", "--out", tmp_path / "no", "--dry-run")
    assert code == 0
    assert "would write" in out
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cola", "--out", "x"], "only the built-in corpus"),
        (["--data", "builtin"], "Name one with --out"),
    ],
)
def test_invalid_arguments_of_write_are_refused(arguments: list[str], message: str, colakit: Run) -> None:
    code, _, err = colakit("data", "write", *arguments)
    assert code == 2
    assert message in err


# --- forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "forms"),
    {
        "cry": "cry cries cried cried crying",
        "dance": "dance dances danced danced dancing",
        "argue": "argue argues argued argued arguing",
        "agree": "agree agrees agreed agreed agreeing",
        "lie": "lie lies lied lied lying",
        "wish": "wish wishes wished wished wishing",
        "wear/wore/worn": "wear wears wore worn wearing",
        "let/let/let/letting": "let lets let let letting",
    }.items(),
)
def test_verbs_are_inflected(entry: str, forms: str) -> None:
    inflected = verb(entry, "any")
    assert (
        f"{inflected.base} {inflected.third} {inflected.past} {inflected.participle} {inflected.gerund}"
        == forms
    )


@pytest.mark.parametrize(
    ("entry", "plural"),
    {"lady": "ladies", "boy": "boys", "bus": "buses", "child/children": "children"}.items(),
)
def test_nouns_are_inflected(entry: str, plural: str) -> None:
    assert noun(entry, "any").plural == plural


def test_a_marked_text_expands_to_a_pair() -> None:
    assert expand("a [old|tall] man saw [|a] owl") == ("an old man saw owl", "a tall man saw an owl")


# --- rules --------------------------------------------------------------------------------------------------


@dataclass
class Words:
    """Features of the words of both pools."""

    number: dict[str, str] = field(default_factory=dict)  # noun -> sg or pl
    kind: dict[str, str] = field(default_factory=dict)  # noun or name -> kind
    forms: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # form -> its verbs
    frames: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # verb form -> frames


def read_words() -> Words:
    words = Words()
    for lexicon in map(load_lexicon, POOLS):
        for kind, nouns in lexicon.nouns.items():
            for item in nouns:
                words.number |= {item.singular: "sg", item.plural: "pl"}
                words.kind |= dict.fromkeys((item.singular, item.plural), kind)
        for gender, names in lexicon.names.items():
            words.number |= dict.fromkeys(map(str.lower, names), "sg")
            words.kind |= dict.fromkeys(map(str.lower, names), gender)
        prepositional = [item for item, _ in (*lexicon.verb_prepositions, *lexicon.particles)]
        for item in (*(v for group in lexicon.verbs.values() for v in group), *prepositional):
            names = ("base", "third", "past", "participle", "gerund")
            for name in names:
                words.forms[name].add(getattr(item, name))
                words.frames[getattr(item, name)].add(item.frame)
    return words


W = read_words()
NUMBER = {"is": "sg", "are": "pl", "was": "sg", "were": "pl", "has": "sg", "have": "pl"}
DETERMINERS = dict.fromkeys(("this", "that", "every", "each", "a", "an"), "sg") | dict.fromkeys(
    ("these", "those", "several", "two", "many", "both"), "pl"
)
SUBJECTS = set(PRONOUNS) | {"i"}
OBLIQUES = {forms[0] for forms in PRONOUNS.values()}
POSSESSIVES = {forms[1] for forms in PRONOUNS.values()}
REFLEXIVES = {forms[2]: pronoun.lower() for pronoun, forms in PRONOUNS.items()}
MODALS = {"will", "can", "could", "must", "might", "should"}
PEOPLE = {"person", "man", "woman"}


@dataclass
class Pair:
    """Two token lists and the span where they differ."""

    good: list[str]
    bad: list[str]

    def __post_init__(self) -> None:
        limit = min(len(self.good), len(self.bad))
        self.start = next((i for i in range(limit) if self.good[i] != self.bad[i]), limit)
        room = limit - self.start
        same = next((i for i in range(room) if self.good[-1 - i] != self.bad[-1 - i]), room)
        self.right = " ".join(self.good[self.start : len(self.good) - same])
        self.wrong = " ".join(self.bad[self.start : len(self.bad) - same])
        self.before = self.good[: self.start]
        self.after = self.good[len(self.good) - same :]

    @property
    def last(self) -> str:
        return self.before[-1] if self.before else ""

    @property
    def next(self) -> str:
        return self.after[0] if self.after else ""

    def nouns(self, words: list[str] | None = None) -> list[str]:
        return [word for word in words or self.good if word in W.number]

    def one_word(self) -> bool:
        return " " not in self.right + self.wrong

    def moved(self) -> bool:
        return sorted(self.good) == sorted(self.bad)

    def only_wrong_adds(self) -> bool:
        return not self.right and bool(self.wrong)

    def only_right_adds(self) -> bool:
        return not self.wrong and bool(self.right)


def verb_number(form: str) -> str:
    return NUMBER.get(form) or ("sg" if form in W.forms["third"] else "pl")


def agrees_with_first_noun(p: Pair) -> bool:
    number = W.number[p.nouns()[0]]
    return p.one_word() and verb_number(p.right) == number != verb_number(p.wrong)


def determiner_agrees(p: Pair) -> bool:
    at = p.start
    chosen = next(i for i in range(at, -1, -1) if p.good[i] in DETERMINERS)
    right = DETERMINERS[p.good[chosen]], W.number[p.nouns(p.good[at:])[0]]
    wrong = DETERMINERS[p.bad[chosen]], W.number[p.nouns(p.bad[at:])[0]]
    return p.one_word() and right[0] == right[1] and wrong[0] != wrong[1]


def partitive(p: Pair) -> bool:
    plural = p.good[0] in ("one", "each", "several")
    return (W.number[p.right], W.number[p.wrong]) == (("pl", "sg") if plural else ("sg", "pl"))


def mass_or_count(p: Pair) -> bool:
    mass = W.kind[p.next] == "mass"
    return {p.right, p.wrong} in ({"much", "many"}, {"little", "few"}) and (
        p.right in ("much", "little")
    ) == mass


def binds(antecedent: str, reflexive: str) -> bool:
    if antecedent in SUBJECTS:
        return REFLEXIVES[reflexive] == antecedent
    if W.number[antecedent] == "pl":
        return reflexive == "themselves"
    return reflexive == {"man": "himself", "woman": "herself"}[W.kind[antecedent]]


def first_binds(p: Pair) -> bool:
    first = p.good[0] if p.good[0] in SUBJECTS else p.nouns()[0]
    return binds(first, p.right) and not binds(first, p.wrong)


def nearest_binds(p: Pair) -> bool:
    outer, inner = p.nouns()[:2]
    return binds(inner, p.right) and not binds(inner, p.wrong) and binds(outer, p.wrong)


def subject_or_reflexive(p: Pair) -> bool:
    if p.right in REFLEXIVES:
        return p.wrong in SUBJECTS and "reflexive" in W.frames[p.last]
    return p.right in SUBJECTS and p.wrong in REFLEXIVES and p.last == "that"


def right_in(rights: set[str], wrongs: set[str]) -> Callable[[Pair], bool]:
    return lambda p: p.right in rights and p.wrong in wrongs


def possessor(p: Pair) -> bool:
    owner = p.right in POSSESSIVES and p.wrong in OBLIQUES
    receiver = p.right in OBLIQUES and p.wrong in POSSESSIVES and "dative" in W.frames[p.last]
    return owner or receiver


def framed(right: str, wrong: str) -> Callable[[Pair], bool]:
    """Require a frame of `right`; the wrong verb has one of `wrong` and none of `right`."""

    def has(form: str, wanted: str) -> bool:
        return any(frame.startswith(tuple(wanted.split())) for frame in W.frames[form])

    return lambda p: has(p.right, right) and has(p.wrong, wrong) and not has(p.wrong, right)


def two_objects(p: Pair) -> bool:
    if "to" in p.right.split():
        return any("to.thing" in W.frames[w] or "to.idea" in W.frames[w] for w in p.before)
    return framed("dative", "to.thing")(p)


def needs_preposition(p: Pair) -> bool:
    prepositional = any("preposition" in W.frames[word] for word in p.before)
    return p.only_right_adds() if prepositional else p.only_wrong_adds()


def kinds(rights: set[str]) -> Callable[[Pair], bool]:
    def of(span: str) -> set[str]:
        return {W.kind[word] for word in span.split() if word in W.kind}

    return lambda p: bool(of(p.right) & rights) and not of(p.wrong) & rights


def clause_type(p: Pair) -> bool:
    return {p.right, p.wrong} == {"whether", "that"} and p.right in W.frames[p.last]


def complement(p: Pair) -> bool:
    infinitive = "infinitive" in W.frames[p.last]
    return (p.right.startswith("to ") and infinitive) or (
        "gerund" in W.frames[p.last] and p.wrong.startswith("to ")
    )


def bare(p: Pair) -> bool:
    frames = set().union(*(W.frames[word] for word in p.before))
    return (p.right, p.wrong) == (("", "to") if "bare" in frames else ("to", ""))


def expletive(frame: str) -> Callable[[Pair], bool]:
    def rule(p: Pair) -> bool:
        if p.wrong == "there":
            return bool(p.nouns(p.right.split()))
        return frame in W.frames[p.right] and frame not in W.frames[p.wrong] and "there" in p.good

    return rule


def auxiliary_form(p: Pair) -> bool:
    helper = next(word for word in reversed(p.before) if word != "not" and word not in W.number)
    wanted = "participle" if helper in ("has", "had") else "gerund" if helper in ("is", "was") else "base"
    return p.one_word() and p.right in W.forms[wanted] and p.wrong not in W.forms[wanted]


def form_in_question(p: Pair) -> bool:
    wanted = "participle" if p.good[0] in ("has", "had") else "base"
    return p.right in W.forms[wanted] and p.wrong not in W.forms[wanted]


def swapped(p: Pair) -> bool:
    return p.moved() and p.right != p.wrong


def times(p: Pair) -> bool:
    ahead = {"tomorrow", "next"}
    return (p.right in ahead) == ("will" in p.good) and (p.wrong in ahead) != (p.right in ahead)


def perfect(p: Pair) -> bool:
    if "since" in p.good:
        return (p.right, p.wrong) == ("has been", "is")
    return "last" in p.after and p.wrong.split()[0] == "has"


def state(p: Pair) -> bool:
    if p.good[-1] == "now":
        return "stative" not in W.frames[p.right.split()[0]] and "stative" in W.frames[p.wrong.split()[0]]
    return "stative" in W.frames[p.right] and p.wrong.split()[0] in ("is", "are")


def sequence(p: Pair) -> bool:
    past = "was" in p.before
    return (p.right in W.forms["past"]) if past else (p.right.split()[0] in ("will", "must"))


def before_after(p: Pair) -> bool:
    future = "will" in p.before
    forms = ("third", "past") if future else ("past", "third")
    return p.right in W.forms[forms[0]] and p.wrong in W.forms[forms[1]]


def inverted(p: Pair) -> bool:
    return p.moved() and (p.right.split()[0] in MODALS | {"did"})


def not_inverted(p: Pair) -> bool:
    return p.moved() and p.wrong.split()[0] in ("had", "would")


def fronted(p: Pair) -> bool:
    return swapped(Pair(p.good[1:], p.bad[1:])) or (p.good[0] == p.bad[p.bad.index("who") + 2])


def gap(p: Pair) -> bool:
    object_there = any(W.kind[noun] not in PEOPLE | {"place"} for noun in p.nouns(p.after))
    return (p.right, p.wrong) == (("that", "what") if object_there else ("what", "that"))


def resumptive(p: Pair) -> bool:
    if "so" in p.good:
        return p.right in ("it", "them") and not p.wrong
    return p.wrong in ("it", "them") and not p.right


def relative(p: Pair) -> bool:
    person = W.kind[p.nouns()[0]] in PEOPLE
    return (p.right, p.wrong) == (("who", "which") if person else ("which", "who"))


def licensed_ever(p: Pair) -> bool:
    licensors = {"no", "hardly", "rarely", "never", "not", "if"}
    first = next(i for i, word in enumerate(p.good) if word in licensors) if licensors & set(p.good) else -1
    if first < 0:  # the good sentence has no polarity item
        return bool({"ever", "any", "yet"} & set(p.wrong.split()))
    item = max(i for i, word in enumerate(p.good) if word in ("ever", "any", "yet"))
    return first < item and p.right.split()[0] != p.wrong


def deep(p: Pair) -> bool:
    return p.good[0] == "no" and p.bad[0] != "no" and "no" in p.bad and "ever" in p.good


def ellipsis_auxiliary(p: Pair) -> bool:
    used = "was" if "was" in p.before else "has" if "has" in p.before else None
    if p.right in ("so", "neither"):
        return (p.right == "neither") == ("not" in p.before)
    return p.right == used if used else p.right in ("did", "will")


def tag(p: Pair) -> bool:
    if p.right.endswith("n't"):
        return p.right.removesuffix("n't") in (*p.before, "did") and p.wrong != p.right
    return (p.right, p.wrong) in (("he", "she"), ("she", "he"))


def noun_ellipsis(p: Pair) -> bool:
    things = [word for word in p.nouns() if W.kind[word] not in PEOPLE]
    return (p.right, p.wrong) == (("ones", "one") if W.number[things[0]] == "pl" else ("one", "ones"))


def sluice(p: Pair) -> bool:
    return (p.right, p.wrong) == (("what", "who") if "something" in p.good else ("who", "what"))


def comparative(p: Pair) -> bool:
    return (p.right, p.wrong) == (("as", "than") if p.before.count("as") else ("than", "as"))


def degree(p: Pair) -> bool:
    more, less = (p.right, p.wrong) if "than" in p.good else (p.wrong, p.right)
    return more.endswith("er") and less[:2] == more[:2]


def more(p: Pair) -> bool:
    return (p.right, p.wrong) == (("", "more") if p.next.endswith("er") else ("more", ""))


def correlative(p: Pair) -> bool:
    link = {"both": "and", "either": "or", "neither": "nor"}
    return link[p.right] in p.after and link[p.wrong] not in p.after


def like_forms(p: Pair) -> bool:
    infinitive = "to" in p.before
    return (p.right in W.forms["base"], p.right in W.forms["gerund"]) == (infinitive, not infinitive)


def like_tenses(p: Pair) -> bool:
    helper = next(word for word in p.before if word in ("will", "was", "has"))
    wanted = {"will": "base", "was": "gerund", "has": "participle"}[helper]
    return p.right in W.forms[wanted] and p.wrong not in W.forms[wanted]


def there_it(p: Pair) -> bool:
    return (p.right, p.wrong) == (("it", "there") if "clear" in p.good else ("there", "it"))


def complex_noun_phrase(p: Pair) -> bool:
    return p.only_wrong_adds() if p.good[0] == "what" else p.only_right_adds()


RULES: dict[str, Callable[[Pair], bool]] = {
    "across_a_prepositional_phrase": agrees_with_first_noun,
    "across_a_relative_clause": agrees_with_first_noun,
    "inside_a_relative_clause": agrees_with_first_noun,
    "of_be": agrees_with_first_noun,
    "of_have": agrees_with_first_noun,
    "of_an_inverted_verb": agrees_with_first_noun,
    "after_there": agrees_with_first_noun,
    "of_a_demonstrative": determiner_agrees,
    "of_the_noun": determiner_agrees,
    "of_a_quantifier": determiner_agrees,
    "one_of_several": partitive,
    "much_or_many": mass_or_count,
    "gender_of_the_antecedent": first_binds,
    "number_of_the_antecedent": first_binds,
    "person_of_the_antecedent": first_binds,
    "a_neighbor_does_not_bind": first_binds,
    "the_nearest_subject_binds": nearest_binds,
    "a_subject_is_no_reflexive": subject_or_reflexive,
    "of_a_subject": right_in(SUBJECTS, OBLIQUES),
    "of_an_object": right_in(OBLIQUES, SUBJECTS),
    "after_a_preposition": right_in(OBLIQUES, SUBJECTS),
    "of_an_infinitive_s_subject": right_in(OBLIQUES, SUBJECTS),
    "of_a_possessor": possessor,
    "who_or_whose": lambda p: (p.right == "whose") == (p.next in W.number) and p.wrong in ("who", "whose"),
    "an_object_is_needed": framed("intransitive", "transitive."),
    "an_object_is_too_much": framed("transitive.", "intransitive"),
    "causatives": framed("alternating transitive.thing", "vanishing"),
    "inchoatives": framed("alternating vanishing", "transitive.thing"),
    "two_objects": two_objects,
    "passives": framed("social reflexive", "intransitive"),
    "a_preposition_is_needed": needs_preposition,
    "of_an_animate_subject": kinds(PEOPLE),
    "of_an_experiencer": kinds(PEOPLE),
    "of_a_clause": clause_type,
    "of_an_infinitive_or_gerund": complement,
    "of_a_bare_infinitive": bare,
    "of_an_expletive_subject": expletive("raising"),
    "of_an_expletive_object": expletive("expecting"),
    "of_a_verb_s_preposition": lambda p: p.one_word() and p.right != p.wrong and bool(p.right and p.wrong),
    "of_an_adjective_s_preposition": lambda p: p.one_word() and bool(p.right and p.wrong),
    "in_order": swapped,
    "form_after_a_modal": auxiliary_form,
    "form_after_do": auxiliary_form,
    "progressives": auxiliary_form,
    "place_of_not": lambda p: swapped(p) and p.right.endswith("not"),
    "time_and_tense": times,
    "states_are_not_in_progress": state,
    "perfect_or_past": perfect,
    "sequence_of_tenses": sequence,
    "after_before": before_after,
    "inversion": inverted,
    "no_inversion_inside": not_inverted,
    "the_main_verb_is_fronted": fronted,
    "tense_stands_once": form_in_question,
    "what_needs_a_gap": gap,
    "a_gap_is_not_filled": resumptive,
    "who_or_which": relative,
    "a_stranded_preposition": needs_preposition,
    "adjuncts": swapped,
    "coordinations": lambda p: swapped(p) and p.bad[-1] == "and",
    "relative_clauses": swapped,
    "embedded_questions": lambda p: p.wrong == "who" and p.right in SUBJECTS,
    "complex_noun_phrases": complex_noun_phrase,
    "left_branches": lambda p: swapped(p) and p.good[1] in W.number and p.bad[-1] == p.good[1],
    "a_negative_subject": licensed_ever,
    "a_negation_too_deep": deep,
    "ever_after_an_adverb": licensed_ever,
    "ever_in_a_condition": licensed_ever,
    "not_yet": licensed_ever,
    "of_a_verb_phrase": ellipsis_auxiliary,
    "so_and_neither": ellipsis_auxiliary,
    "of_a_tag": tag,
    "of_a_noun": noun_ellipsis,
    "of_a_question": sluice,
    "of_adjective_and_noun": lambda p: swapped(p) and p.right.split()[-1] in W.number,
    "of_an_adverb": lambda p: swapped(p) and p.wrong.endswith(p.right.split()[0]),
    "of_a_particle": swapped,
    "of_determiners": swapped,
    "of_a_degree": lambda p: swapped(p) and (p.right.endswith("enough") or p.right.startswith("such")),
    "of_a_preposition": lambda p: swapped(p) and p.right.endswith("the"),
    "than_or_as": comparative,
    "of_the_adjective": degree,
    "with_more": more,
    "of_correlatives": correlative,
    "of_like_forms": like_forms,
    "of_like_tenses": like_tenses,
    "no_strong_determiner": right_in(
        {"a", "two", "some", "many", "several"}, {"both", "every", "each", "all", "all the", "most"}
    ),
    "there_or_it": there_it,
}  # fmt: skip


def test_every_phenomenon_has_paradigms_and_every_paradigm_a_rule() -> None:
    paradigms = Counter(item.phenomenon for item in PARADIGMS)
    assert len(paradigms) == 17
    assert min(paradigms.values()) >= 2
    names = [item.name for item in PARADIGMS]
    assert sorted(names) == sorted(RULES)
    assert len(PARADIGMS) == len(REGISTER)


@pytest.mark.parametrize("item", PARADIGMS, ids=lambda item: f"{item.phenomenon}-{item.name}")
def test_every_pair_follows_the_rule_of_its_paradigm(item: Paradigm) -> None:
    for pool in POOLS:
        for seed in range(120):
            right, wrong = expand(item.draw(Grammar(seed, load_lexicon(pool))))
            if right == wrong:  # a verb whose two forms are equal; the corpus skips these
                continue
            good, bad = (["a" if word == "an" else word for word in tokens(text)] for text in (right, wrong))
            assert RULES[item.name](Pair(good, bad)), (right, wrong)


@pytest.mark.parametrize("item", PARADIGMS, ids=lambda item: f"{item.phenomenon}-{item.name}")
def test_frames_do_not_change_the_contrast(item: Paradigm) -> None:
    for seed in range(40):
        right, wrong = expand(item.draw(Grammar(seed, load_lexicon("id"))))
        good, bad = item.pair(Grammar(seed, load_lexicon("id")))
        assert " ".join(tokens(right)) in " ".join(tokens(good))
        assert " ".join(tokens(wrong)) in " ".join(tokens(bad))
        assert good.endswith(item.end)
        assert bad.endswith(item.end)
        assert (right == wrong) == (good == bad)


# --- documentation ------------------------------------------------------------------------------------------


def table_of_phenomena() -> str:
    """One row per phenomenon: number of paradigms and shortest pair of id_dev."""
    rows = ["| phenomenon | paradigms | acceptable | unacceptable |", "|---|---|---|---|"]
    for phenomenon, count in Counter(item.phenomenon for item in PARADIGMS).items():
        pairs = [p for p in builtin_pairs() if p.split == "id_dev" and p.phenomenon == phenomenon]
        pair = min(pairs, key=lambda pair: (len(pair.sentence_good), pair.sentence_good))
        rows.append(f"| {phenomenon} | {count} | {pair.sentence_good} | {pair.sentence_bad} |")
    return "\n".join(rows)


def test_the_documentation_table_is_current() -> None:
    page = (ROOT / "docs/builtin-corpus.md").read_text(encoding="utf-8")
    assert table_of_phenomena() in page, f"put this table into the page:\n{table_of_phenomena()}"
    assert f"Version {VERSION}" in page
    for name, split in builtin_corpus().splits.items():
        acceptable = 100 * split.require_labels().mean()
        assert f"| `{name}` | {len(split):,} | {acceptable:.1f} |" in page
    paradigms = len(PARADIGMS)
    assert f"{paradigms} paradigms" in page
    for pool in POOLS:
        lexicon = load_lexicon(pool)
        groups = (lexicon.nouns, lexicon.names, lexicon.verbs, lexicon.adjectives)
        words = {str(word) for group in groups for items in group.values() for word in items}
        assert f"{len(words) + len(lexicon.adverbs)} words" in page, len(words) + len(lexicon.adverbs)
