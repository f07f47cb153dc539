"""Running text: documents, sentences, token streams, the validation split and windows."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from colakit.data.running_text import (
    Stream,
    Vocabulary,
    encode_text,
    read_documents,
    sentences,
    split_val,
    text_files,
)
from colakit.data.tokenizer import SentenceTokenizer, save_tokenizer, train_tokenizer
from colakit.data.windows import TextSource, Windows, bytes_of
from colakit.errors import ColakitError
from colakit.utils.array_cache import ArrayCache

FIRST = 'Mr. Hill met J. Ford. "Was it late?" he asked! It was.\n\n  A new day began. so it went on.'
SECOND = "The dog barked at the cats. The cats ran. The end."
TEXT = f"{FIRST}\n<|endoftext|>\n\n{SECOND}\n<|endoftext|>\n"


@pytest.fixture
def tokenizer() -> SentenceTokenizer:
    return train_tokenizer([FIRST, SECOND] * 20, 300)


@pytest.fixture
def stream(tokenizer: SentenceTokenizer, tmp_path: Path) -> Stream:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return encode_text([path], tokenizer, None)


def test_documents_are_separated_by_the_end_of_text_line(tmp_path: Path) -> None:
    for name, opener in (("a.txt", open), ("a.txt.gz", gzip.open), ("a.txt.xz", lzma.open)):
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(TEXT)
        assert list(read_documents(tmp_path / name)) == [FIRST, SECOND]


def test_text_files_of_a_folder_are_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt.gz", "notes.md", "image.png"):
        (tmp_path / name).touch()
    assert [file.name for file in text_files(tmp_path)] == ["a.txt.gz", "b.txt", "notes.md"]


def test_unreadable_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ColakitError, match="file not found"):
        text_files(tmp_path / "none.txt")
    with pytest.raises(ColakitError, match="no text found"):
        text_files(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ColakitError, match=r"latin\.txt: not UTF-8"):
        list(read_documents(tmp_path / "latin.txt"))
    (tmp_path / "broken.txt.xz").write_bytes(lzma.compress(b"text" * 1000)[:-20])
    with pytest.raises(ColakitError, match=r"broken\.txt\.xz: cannot be read"):
        list(read_documents(tmp_path / "broken.txt.xz"))
    (tmp_path / "broken.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ColakitError, match=r"broken\.txt\.gz: cannot be read"):
        list(read_documents(tmp_path / "broken.txt.gz"))


def test_sentences_end_where_a_capital_follows_but_not_after_titles_and_initials() -> None:
    assert sentences(FIRST) == [
        "Mr. Hill met J. Ford.",
        ' "Was it late?" he asked!',
        " It was.",
        "\nA new day began. so it went on.",
    ]


def test_a_stream_is_the_documents_tokens_with_their_ends(
    stream: Stream, tokenizer: SentenceTokenizer
) -> None:
    text = tokenizer.backend.decode(stream.ids.tolist(), skip_special_tokens=False)
    assert text == "<|endoftext|>".join([FIRST.replace("\n\n  ", "\n"), SECOND, ""])
    assert stream.documents[0] == 0
    assert stream.documents[-1] == len(stream)
    assert stream.ids[stream.documents[1:] - 1].tolist() == [tokenizer.end_of_text_id] * 2


def test_every_start_is_a_sentences_first_token(stream: Stream, tokenizer: SentenceTokenizer) -> None:
    firsts = [tokenizer.decode([int(token)]).strip() for token in stream.ids[stream.starts]]
    beginnings = ["Mr. Hill", '"Was', "It was", "A new", "The dog", "The cats", "The end"]
    assert len(firsts) <= len(beginnings)  # a first token may have no form without its space
    for first in firsts:
        assert any(beginning.startswith(first) for beginning in beginnings)
    assert {0, int(stream.documents[1])} <= set(stream.starts.tolist())


def test_a_stream_comes_from_the_cache_the_second_time(
    tokenizer: SentenceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    cache = ArrayCache(tmp_path / "cache")
    first = encode_text([path], tokenizer, cache)
    monkeypatch.setattr("colakit.data.running_text._encode", None)
    assert encode_text([path], tokenizer, cache).fingerprint() == first.fingerprint()


def test_vocabulary_has_byte_counts_and_bare_forms(tokenizer: SentenceTokenizer) -> None:
    facts = Vocabulary.of(tokenizer)
    for text in (FIRST, "caf\u00e9 \U0001f600"):
        ids = tokenizer.encode([text]).ids
        assert facts.num_bytes[ids].sum() == len(text.encode())
    assert facts.num_bytes[tokenizer.end_of_text_id] == 0
    with_space, bare = tokenizer.encode([" The", "The"]).ids
    assert facts.bare[with_space] == bare
    assert facts.bare[bare] == bare
    assert facts.blank[tokenizer.encode(["\n"]).ids].all()


def many_documents(sizes: list[int]) -> Stream:
    documents = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.arange(documents[-1], dtype=np.uint16)
    return Stream(ids, np.arange(0, documents[-1], 5), documents)


def test_sentence_splitting_is_linear_in_a_long_word() -> None:
    word = "x" * 200_000  # a quadratic regex would not finish
    assert sentences(f"{word} stays. Then more.") == [f"{word} stays.", " Then more."]


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_train_is_never_empty(share: float) -> None:
    train, val = split_val(many_documents([10, 10]), share, seed=0)
    assert len(train)
    assert len(val)


@pytest.mark.parametrize("sizes", [[100] * 30, [7, 500, 20, 30] * 9, [1000]])
def test_train_and_val_are_disjoint_and_complete(sizes: list[int]) -> None:
    stream = many_documents(sizes)
    train, val = split_val(stream, 0.1, seed=0)
    assert sorted([*train.ids.tolist(), *val.ids.tolist()]) == stream.ids.tolist()
    assert 0.05 * len(stream) < len(val) < 0.2 * len(stream)
    for part in (train, val):
        assert part.documents[-1] == len(part)
        assert set(part.ids[part.starts].tolist()) <= set(stream.ids[stream.starts].tolist())
    if len(sizes) > 1:  # whole documents
        begins = set(stream.ids[stream.documents[:-1]].tolist())
        assert set(val.ids[val.documents[:-1]].tolist()) <= begins


def windows_over(stream: Stream, tokenizer: SentenceTokenizer, size: int, repeats: int = 1) -> Windows:
    facts = Vocabulary.of(tokenizer)
    return Windows({"text": TextSource(stream, repeats)}, facts, size, tokenizer.end_of_text_id)


def test_a_window_is_the_end_of_text_then_a_sentence(stream: Stream, tokenizer: SentenceTokenizer) -> None:
    windows = windows_over(stream, tokenizer, 8)
    plan = windows.plan(seed=0, epoch=0)
    assert len(plan) == len(windows)
    batch = windows.batch(plan)
    assert batch.input_ids.shape == (len(plan), 9)
    assert (batch.input_ids[:, 0] == tokenizer.end_of_text_id).all()
    for ids, (_, start) in zip(batch.input_ids.tolist(), plan, strict=True):
        assert start in stream.starts
        written = tokenizer.decode(ids[1:])
        assert not written.startswith((" ", "\n"))
        assert tokenizer.decode(stream.ids[start : start + 8].tolist()).strip(" ").startswith(written)
    assert windows.count(plan) == int(batch.attention_mask[:, 1:].sum())


def test_sentences_of_other_alphabets_are_split() -> None:
    assert sentences("Кошка спит. Собака лает! Élan vital. ok. 猫在睡觉. 狗") == [
        *("Кошка спит.", " Собака лает!", " Élan vital. ok.", " 猫在睡觉.", " 狗"),
    ]


def test_text_without_sentence_starts_is_read_completely(
    tokenizer: SentenceTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "lower.txt"
    path.write_text("the cat sleeps and the dog barks " * 40, encoding="utf-8")
    stream = encode_text([path], tokenizer, None)
    windows = Windows({"lower": TextSource(stream)}, Vocabulary.of(tokenizer), 8, tokenizer.end_of_text_id)
    starts = windows.plan(0, 0)[:, 1]
    read = {token for start in starts for token in range(start, min(start + 8, len(stream)))}
    assert len(read) > 0.9 * len(stream)


def test_an_epoch_is_a_function_of_its_number_and_reads_repeats(
    stream: Stream, tokenizer: SentenceTokenizer
) -> None:
    windows = windows_over(stream, tokenizer, 4, repeats=3)
    assert len(windows) == 3 * len(windows_over(stream, tokenizer, 4))
    assert np.array_equal(windows.plan(0, 1), windows.plan(0, 1))
    assert not np.array_equal(windows.plan(0, 1), windows.plan(0, 2))
    assert not np.array_equal(windows.plan(0, 1), windows.plan(1, 1))


def test_bytes_of_a_batch_are_those_of_its_text(stream: Stream, tokenizer: SentenceTokenizer) -> None:
    windows = windows_over(stream, tokenizer, len(stream))
    batch = windows.batch(np.array([[0, 0]]))
    assert bytes_of(batch, windows.facts) == len(FIRST.replace("\n\n  ", "\n").encode()) + len(
        SECOND.encode()
    )


def test_transformers_loads_a_trained_tokenizer(tokenizer: SentenceTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path, max_tokens=64)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened(SECOND)["input_ids"] == tokenizer.encode([SECOND]).ids.tolist()
    assert opened.eos_token_id == tokenizer.end_of_text_id
    assert opened.model_max_length == 64


def test_a_tokenizer_keeps_its_own_end_of_text(tmp_path: Path) -> None:
    backend = train_tokenizer([SECOND], 260).backend
    backend.add_special_tokens(["</s>"])
    other = SentenceTokenizer(backend, backend.token_to_id("</s>"))
    save_tokenizer(other, tmp_path, max_tokens=64)
    assert SentenceTokenizer.from_base(tmp_path).end_of_text_id == other.end_of_text_id
