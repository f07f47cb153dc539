"""The transfer set: its sources, forbidden sentences and caching."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from colakit.api.distill import tuned_sampler
from colakit.api.session import Session
from colakit.config.resolve import resolve
from colakit.data.builtin.corpus import PARADIGMS, builtin_corpus, grammar_sentences
from colakit.data.corpora import COLA_LABELS, Corpus, Split
from colakit.data.corruption import corrupt_sentences
from colakit.data.running_text import read_documents, whole_sentences
from colakit.data.splits import left_out, normalised
from colakit.data.tokenizer import SentenceTokenizer
from colakit.distillation.collector import WORDS, Collector, shares
from colakit.distillation.samplers import SentenceSampler
from colakit.distillation.transfer_set import Sources, augment, make_transfer_set, measure_transfer_set
from colakit.distillation.tuned_sampler import TunedSampler
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.predictor import Predictor
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import load_gpt
from colakit.training.task_data import TaskData
from colakit.utils.console import Reporter

TRAIN = [
    *("The sailor sang a song.", "A nurse saw him.", "They have walked home.", "Who did you see?"),
    *("The dogs bark at night.", "She gave me this book.", "I never saw any birds.", "We walk to school."),
]


@pytest.mark.parametrize(
    "other",
    [
        "the sailor sang a song",
        "The  sailor sang, a song!",
        "THE SAILOR SANG A SONG.",
        "The sailor sang a\u00a0song。",
    ],
)
def test_case_space_and_punctuation_are_ignored_when_comparing(other: str) -> None:
    assert normalised(other) == normalised(TRAIN[0]) == "thesailorsangasong"


def test_collector_accepts_new_sentences_that_are_not_forbidden() -> None:
    collector = Collector(forbidden=["He left."], known=["She left."])
    offered = ["he left", "She left!", "They  left.", "They left", "?!", "One", "We left."]
    assert [collector.add(sentence) for sentence in offered] == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert collector.sentences == ["They left.", "We left."]


def test_exhausted_source_is_named() -> None:
    with pytest.raises(ColakitError, match=r"transfer\.text: only 1 of 3 sentences are new"):
        Collector([]).fill(["They left.", "they left"], 3, "text")


def test_source_that_only_repeats_is_stopped() -> None:
    with pytest.raises(ColakitError, match="only 1 of 2"):
        Collector([]).fill(iter(lambda: "They left.", None), 2, "corrupt")


def test_corrupted_sentences_differ_and_are_unlimited() -> None:
    corrupted = list(islice(corrupt_sentences(TRAIN, TRAIN, random.Random(0)), 10 * len(TRAIN)))
    assert not set(corrupted) & set(TRAIN)
    assert len(set(corrupted)) > 4 * len(TRAIN)


@pytest.mark.parametrize("wanted", [0, 1, 7, 100])
def test_shares_sum_to_the_size(wanted: int) -> None:
    counts = shares(wanted, {"corrupt": 1.0, "lm_sample": 2.0, "text": 0.5})
    assert sum(counts.values()) == wanted
    assert all(
        abs(counts[name] - wanted * part) <= 1 for name, part in (("corrupt", 2 / 7), ("lm_sample", 4 / 7))
    )


def test_sources_are_drawn_in_a_fixed_order() -> None:
    names = ("corrupt", "lm_sample", "lm_sample_corrupt", "text", "text_corrupt", "word_resample")
    order = ["corrupt", "word_resample", "lm_sample", "text", "lm_sample_corrupt", "text_corrupt"]
    assert list(shares(60, dict.fromkeys(names, 1.0))) == order


def test_folds_partition_the_sentences_and_keep_duplicates_together() -> None:
    sentences = [f"Sentence number {i}." for i in range(200)]
    folds = np.stack([left_out(sentences, f"{i}/5") for i in range(1, 6)])
    assert (folds.sum(axis=0) == 1).all()
    assert folds.sum(axis=1).min() > 20
    assert (left_out([s.upper() for s in sentences], "2/5") == folds[1]).all()


def load_session(data: Path, **settings: object) -> tuple[Session, TaskData]:
    """Return a session and its task data, with settings of the section `transfer`."""
    assignments = [f"data.path={data}", *(f"transfer.{key}={value}" for key, value in settings.items())]
    resolved = resolve(flags={}, assignments=assignments, config=None)
    session = Session("distill", resolved, Reporter(quiet=False), None, False, False)
    return session, session.load_task()


def draw_transfer_set(session: Session, task: TaskData, base: Path | str | None = None) -> Split:
    settings = session.settings.transfer
    base = settings.language_model or base
    sampler = tuned_sampler(session, task, str(base)) if settings.needs_sampler else None
    return make_transfer_set(task, settings, session.arrays, session.reporter, sampler)


def augmented_train(session: Session, task: TaskData) -> Split:
    return augment(task, session.settings.transfer, session.arrays, session.reporter)


def forms(split: Split) -> set[str]:
    return set(map(normalised, split.sentences))


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A text file with one sentence a line."""
    path = tmp_path / "prose.txt"
    path.write_text("\n".join(f"The old farmer counted {i} tired sheep again." for i in range(2000)))
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv.xz", "jsonl.gz", "parquet", "hub"])
def test_a_table_gives_the_sentences_of_its_column(
    ending: str, toy: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pandas.DataFrame({"line": prose.read_text().splitlines(), "other": "A sentence of no use."})
    path: Path | str = prose.with_name(f"table.{ending}")
    match ending.partition(".")[0]:
        case "hub":
            datasets = pytest.importorskip("datasets")
            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(prose.with_name("cache")))
            path.mkdir()
            frame.to_csv(path / "train.csv")
            path = f"hf:{path}:train"
        case "parquet":
            frame.to_parquet(path)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case kind:
            frame.to_csv(path, sep="\t" if kind == "tsv" else ",")
    options = {"data": toy / "corpus", "size": 0.2, "sources": "{text: 1}"}
    session, task = load_session(**options, text=path, text_column="line")
    expected = draw_transfer_set(*load_session(**options, text=prose)).sentences
    assert draw_transfer_set(session, task).sentences == expected
    with pytest.raises(ColakitError, match=r"no setting names the column.*\n.*transfer\.text_column=NAME"):
        draw_transfer_set(*load_session(**options, text=path))


def test_evaluation_sentences_are_never_drawn(toy: Path, prose: Path) -> None:
    """Half of the text is evaluation sentences in other spellings."""
    corpus = {"data": toy / "corpus", "size": 1.5}
    evaluation = load_session(**corpus)[1].corpus.split("dev").sentences
    planted = [f"{sentence.upper().strip(' .')}!" for sentence in evaluation if len(sentence.split()) > 3]
    prose.write_text("\n".join([*planted, *prose.read_text().splitlines()]))
    assert set(planted) <= set(whole_sentences(read_documents(prose), WORDS))
    session, task = load_session(
        **corpus,
        sources="{corrupt: 1, word_resample: 1, lm_sample: 1, lm_sample_corrupt: 1, "
        "text: 1, text_corrupt: 1}",
        text=prose,
        language_model=toy / "base",
    )
    drawn = draw_transfer_set(session, task)
    assert len(drawn) == len(forms(drawn)) == round(1.5 * len(task.train))
    assert not forms(drawn) & (forms(task.corpus.split("dev")) | forms(task.val) | forms(task.train))


def test_transfer_set_is_drawn_once(toy: Path, prose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"size": 0.5, "sources": "{text: 1, corrupt: 1}", "text": prose}
    first = draw_transfer_set(*load_session(toy / "corpus", **sizes))
    assert "making a transfer set" in capsys.readouterr().err
    again = draw_transfer_set(*load_session(toy / "corpus", **sizes))
    assert "making a transfer set" not in capsys.readouterr().err
    assert again.sentences == first.sentences
    other = draw_transfer_set(*load_session(toy / "corpus", **sizes, seed=1))
    assert other.sentences != first.sentences
    prose.write_text("The young farmer counted sheep.\n" + prose.read_text())
    draw_transfer_set(*load_session(toy / "corpus", **sizes))
    assert "making a transfer set" in capsys.readouterr().err


def test_sampler_is_the_base_by_default(toy: Path, tmp_path: Path) -> None:
    sizes = {"size": 0.2, "sources": "{lm_sample_corrupt: 1, lm_sample: 1}"}
    default = draw_transfer_set(*load_session(toy / "corpus", **sizes), toy / "base")
    named = draw_transfer_set(*load_session(toy / "corpus", **sizes, language_model=toy / "base"))
    assert default.sentences == named.sentences
    with pytest.raises(ColakitError, match="no-such-base"):
        draw_transfer_set(*load_session(toy / "corpus", **sizes), "./no-such-base")


def test_both_sample_sources_share_one_sequence_of_samples(toy: Path) -> None:
    """`lm_sample_corrupt` uses further samples, not those of `lm_sample`."""
    session, task = load_session(toy / "corpus", sampler_epochs=0)
    settings, sampler = session.settings.transfer, tuned_sampler(session, task, str(toy / "base"))
    sources = Sources(settings, task, sampler, lambda sentence: False)
    first = list(islice(sources.draw("lm_sample", 50), 50))
    next(sources.draw("lm_sample_corrupt", 80))
    assert sources.sampled[:50] == first
    assert len(sources.sampled) == 80
    assert sources.sampled[50:80] != first[:30]


def test_corrupted_samples_do_not_need_the_source_of_samples(toy: Path) -> None:
    session, task = load_session(toy / "corpus", size=0.2, sources="{lm_sample_corrupt: 1}")
    drawn = draw_transfer_set(session, task, toy / "base")
    assert len(drawn) == round(0.2 * len(task.train))


def test_the_grammar_writes_pairs_of_every_paradigm_with_the_words_of_train() -> None:
    """Dev has other words out of domain; none of its sentences is drawn, which the grammar could write."""
    drawn = list(islice(grammar_sentences(0), 2 * len(PARADIGMS)))
    assert drawn == list(islice(grammar_sentences(0), 2 * len(PARADIGMS)))
    assert not set(drawn) & set(islice(grammar_sentences(1), 2 * len(PARADIGMS)))
    corpus = builtin_corpus()

    def words(sentences: Iterable[str]) -> set[str]:
        return {word for text in sentences for word in text.lower().strip(".?!").split()}

    only_ood = words(corpus.split("ood_dev").sentences) - words(corpus.split("train").sentences)
    assert len(only_ood) > 100
    many = list(islice(grammar_sentences(0), 20_000))
    assert len(words(many) & only_ood) < len(only_ood) / 10
    resolved = resolve(assignments=["data.path=builtin", "transfer.sources={grammar: 1}", "transfer.size=1"])
    session = Session("distill", resolved, Reporter(quiet=True))
    task = session.load_task()
    transfer = make_transfer_set(task, session.settings.transfer, session.arrays, session.reporter)
    assert len(transfer) == len(task.train)
    evaluated = {*task.val.sentences, *corpus.split("id_dev").sentences, *corpus.split("ood_dev").sentences}
    assert not evaluated & set(transfer.sentences)


def test_dev_sentences_of_cola_are_never_drawn(shared: Path) -> None:
    session, task = load_session(
        shared / "cola" / "cola_public.zip",
        size=0.5,
        sources="{corrupt: 1, word_resample: 1, lm_sample: 1, lm_sample_corrupt: 1}",
        sampler_epochs=0,
        language_model=shared / "models" / "mini-v0",
    )
    drawn = draw_transfer_set(session, task)
    assert len(drawn) == round(0.5 * len(task.train))
    dev = task.corpus.split("dev")
    assert len(dev) == 1043
    assert not forms(drawn) & forms(dev)


def test_sampled_sentences_are_complete_and_reproducible(toy: Path, fp32: Compute) -> None:
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    model = load_gpt(toy / "base").requires_grad_(False).eval()

    sampler = SentenceSampler(model, tokenizer, fp32, temperature=1.0, batch_size=4)
    beginnings = ["the old cat sleeps .", "the girls see the dog ."]
    sampled = list(sampler.continuations(beginnings, "a seed"))
    assert sampled == list(sampler.continuations(beginnings, "a seed"))
    assert sampled != list(sampler.continuations(beginnings, "another"))
    assert len(set(sampled)) > 10
    assert not any("<|endoftext|>" in sentence or "\n" in sentence for sentence in sampled)


def test_word_resampling_replaces_one_word_in_context(toy: Path, fp32: Compute) -> None:
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    model = load_gpt(toy / "base").requires_grad_(False).eval()
    sampler = SentenceSampler(model, tokenizer, fp32, temperature=1.0, batch_size=8)
    assert list(sampler.word_resamples(["Go!", "Stop"], "a seed")) == []  # the first word is never replaced
    original = "The old cat sees the dog."
    words = original.removesuffix(".").split()
    resampled = list(sampler.word_resamples([original], "a seed"))
    assert len(resampled) > 20
    for sentence in resampled:
        new_words = sentence.removesuffix(".").split()
        assert len(new_words) == len(words)
        assert sum(one != other for one, other in zip(new_words, words, strict=True)) == 1
        assert new_words[0] == "The"


@pytest.mark.parametrize(
    ("sampled", "word"),
    [(" dogs and", "dogs"), (" dog.", "dog"), ("s and", None), (" dog", None), (" 12 dogs", None)],
)
def test_only_whole_words_are_accepted(toy: Path, fp32: Compute, sampled: str, word: str | None) -> None:
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    model = load_gpt(toy / "base")
    sampler = SentenceSampler(model, tokenizer, fp32, temperature=1.0)
    tokens = tokenizer.encode([sampled]).sentence(0).tolist()
    assert sampler._first_word(tokens) == word
    if sampled == " dog":  # the end of the text ends the word
        assert sampler._first_word([*tokens, tokenizer.end_of_text_id]) == "dog"


def test_augmented_train_has_the_same_share_of_labels() -> None:
    labels = np.array([1] * 70 + [0] * 30, dtype=np.int64)
    train = Split("train", tuple(f"The {i} dogs bark at the cats." for i in range(100)), labels)
    task = TaskData(Corpus("made", COLA_LABELS, {"train": train}), train, Split("val", (), labels[:0]), {})
    resolved = resolve(flags={}, assignments=["transfer.size=3"], config=None)
    session = Session("train-scratch", resolved, Reporter(quiet=True), None, False, False)
    augmented = augmented_train(session, task)
    assert len(augmented) == 400
    assert augmented.require_labels().mean() == 0.7
    added = [(s, int(y)) for s, y in zip(augmented.sentences, augmented.require_labels(), strict=True)][100:]
    assert {s for s, label in added if label == 1} == set(train.sentences[:70])  # 210 repeats, all used
    assert not {s for s, label in added if label == 0} & set(train.sentences)


def test_rule_labels_only_corrupted_sentences_of_cola() -> None:
    train = Split("train", ("They left.",), np.array([1], dtype=np.int64))
    task = TaskData(Corpus("made", ("no", "yes"), {"train": train}), train, train, {})
    resolved = resolve(flags={}, assignments=[], config=None)
    session = Session("train-scratch", resolved, Reporter(quiet=True), None, False, False)
    with pytest.raises(ColakitError, match="corrupted sentences can be labelled only with CoLA's two labels"):
        augmented_train(session, task)


def test_sampler_key_depends_on_its_inputs_and_precision(toy: Path) -> None:
    def identity(*assignments: str) -> dict[str, object]:
        all_assignments = [f"data.path={toy / 'corpus'}", *assignments]
        session = Session(
            "distill",
            resolve(flags={}, assignments=all_assignments, config=None),
            Reporter(),
            None,
            False,
            False,
        )
        return tuned_sampler(session, session.load_task(), str(toy / "base")).identity

    usual = identity("precision=fp32")
    for assignment in (
        "precision=bf16",
        "data.max_tokens=8",
        "finetune.lr=0.1",
        "lora.rank=2",
        "transfer.seed=1",
    ):
        assert identity("precision=fp32", assignment) != usual, assignment
    for assignment in ("seed=1", "finetune.add_bos=true", "finetune.patience=1", "student.hidden_size=7"):
        assert identity("precision=fp32", assignment) == usual, assignment
    untuned = "transfer.sampler_epochs=0"
    assert identity("precision=fp32", untuned) != identity("precision=bf16", untuned)


def test_evaluation_sentences_are_never_corrupted(toy: Path, prose: Path) -> None:
    session, task = load_session(toy / "corpus", sources="{text: 1, text_corrupt: 1}", text=prose)
    sources = Sources(session.settings.transfer, task, None, lambda s: "counted 7" in s)
    assert not [s for s in sources.draw("text", 10) if "counted 7" in s]


@pytest.mark.parametrize(("words", "enough"), [(1, False), (2, True), (60, True)])
def test_short_and_long_sentences_can_be_corrupted(words: int, enough: bool) -> None:
    train = [" ".join(f"w{i}x{j}" for j in range(words)) + "." for i in range(30)]
    labels = np.array([1] * 20 + [0] * 10, dtype=np.int64)
    split, none = Split("train", tuple(train), labels), Split("val", (), labels[:0])
    task = TaskData(Corpus("made", COLA_LABELS, {"train": split}), split, none, {})
    assignments = ["transfer.size=1", "transfer.sources={corrupt: 1}"]
    session = Session(
        "distill", resolve(flags={}, assignments=assignments, config=None), Reporter(), None, False, False
    )
    if enough:
        assert len(draw_transfer_set(session, task)) == 30
    else:
        with pytest.raises(ColakitError, match="only 0 of 30"):
            draw_transfer_set(session, task)


def test_augmentation_needs_a_transfer_set(toy: Path) -> None:
    with pytest.raises(ColakitError, match=r"transfer\.size is 0"):
        augmented_train(*load_session(toy / "corpus", size=0))


def test_sampler_is_finetuned_on_train_once(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make_sampler(**settings: object) -> TunedSampler:
        session, task = load_session(toy / "corpus", **settings)
        return tuned_sampler(session, task, str(toy / "base"))

    untuned = make_sampler(sampler_epochs=0)
    assert untuned.folder() == toy / "base"
    tuned = make_sampler(sampler_epochs=1)
    weights = (tuned.folder() / "model.safetensors").read_bytes()
    assert "fine-tuning" in capsys.readouterr().err
    assert weights != (toy / "base" / "model.safetensors").read_bytes()
    assert make_sampler(sampler_epochs=1).folder() == tuned.folder()
    assert "fine-tuning" not in capsys.readouterr().err
    assert make_sampler(sampler_epochs=2).folder() != tuned.folder()
    assert make_sampler(sampler_epochs=1, seed=1).folder() != tuned.folder()
    assert untuned.identity != tuned.identity


def test_complete_rounds_are_cached(toy: Path, fp32: Compute) -> None:
    """An interrupted command continues after them, and a larger set starts with them."""
    seeds: list[str] = []

    class Recording(SentenceSampler):
        def continuations(self, beginnings: Sequence[str], seed: str) -> Iterator[str]:
            seeds.append(seed)
            return super().continuations(beginnings, seed)

    def make_sampler(**settings: object) -> TunedSampler:
        session, task = load_session(toy / "corpus", sampler_epochs=0, **settings)
        sampler = tuned_sampler(session, task, str(toy / "base"))
        model = load_gpt(toy / "base").requires_grad_(False).eval()
        tokenizer = SentenceTokenizer.from_base(toy / "base")
        sampler.sampler = Recording(model, tokenizer, fp32, temperature=1.0, batch_size=4)
        return sampler

    first = list(islice(make_sampler().lm_samples(), 140))  # 64 per round
    assert len(seeds) == len(set(seeds)) >= 3
    earlier, seeds[:] = list(seeds), []
    assert list(islice(make_sampler().lm_samples(), 200))[:140] == first
    assert seeds[0] == earlier[-1]  # the incomplete round
    seeds.clear()
    assert list(islice(make_sampler(seed=1).lm_samples(), 60)) != first[:60]
    assert seeds


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("transfer.sources={text_corrupt: 1}", "need transfer.text"),
        ("transfer.sources={}", "transfer.sources"),
        ("transfer.text=prose.txt", "transfer.text requires the source text or text_corrupt"),
        ("transfer.sources={corrupt: 0}", "greater than 0"),
        ("finetune.leave_out=0/5", "a fold is written"),
        ("finetune.leave_out=6/5", "a fold is written"),
    ],
)
def test_invalid_settings_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ColakitError, match=message):
        resolve(flags={}, assignments=[assignment], config=None)


def test_a_student_selects_the_sentences_that_it_is_least_certain_of(
    toy: Path, prose: Path, tmp_path: Path, fp32: Compute
) -> None:
    torch.manual_seed(0)
    tokenizer = SentenceTokenizer.from_base(toy / "base")
    model = DistilRNN(RNNConfig(tokenizer.vocab_size, embedding_size=8, hidden_size=8))
    SentenceClassifier(model, tokenizer, COLA_LABELS, 64).save(tmp_path / "ckpt.pt")
    sources = "{corrupt: 1, text: 1}"
    session, task = load_session(toy / "corpus", text=prose, sources=sources, size=4)
    candidates = draw_transfer_set(session, task)
    session, task = load_session(
        toy / "corpus", text=prose, sources=sources, size=1, select_for=tmp_path / "ckpt.pt"
    )
    transfer = draw_transfer_set(session, task)
    predictor = Predictor(load_classifier(tmp_path), fp32)
    logits = predictor.logits(predictor.encode(candidates.sentences))
    margins = np.abs(logits[:, 1] - logits[:, 0])
    kept = np.isin(candidates.sentences, transfer.sentences)
    assert kept.sum() == len(transfer) == len(task.train)
    assert margins[kept].max() < margins[~kept].min()
    assert transfer.sentences == tuple(np.array(candidates.sentences)[kept])  # in the order drawn
    session, task = load_session(
        *(toy / "corpus",), text=prose, sources=sources, size=1, select_for=tmp_path, candidates=2
    )
    assert draw_transfer_set(session, task).sentences != transfer.sentences


def test_a_model_that_cannot_select_is_refused(toy: Path, prose: Path, tmp_path: Path) -> None:
    for path in (toy / "base", tmp_path / "nothing"):
        session, task = load_session(toy / "corpus", sources="{corrupt: 1}", select_for=path)
        with pytest.raises(ColakitError, match=r"transfer\.select_for"):
            draw_transfer_set(session, task)


def test_only_a_cached_transfer_set_takes_no_time(toy: Path, prose: Path, tmp_path: Path) -> None:
    for sources in ("{corrupt: 1}", "{grammar: 1}", "{text: 1}"):
        text = {"text": prose} if "text" in sources else {}
        session, task = load_session(toy / "corpus", sources=sources, **text)
        assert measure_transfer_set(task, session.settings.transfer, None) > 0


def test_candidates_without_a_student_are_refused() -> None:
    with pytest.raises(ColakitError, match="candidates needs select_for"):
        resolve(assignments=["transfer.candidates=3"])
