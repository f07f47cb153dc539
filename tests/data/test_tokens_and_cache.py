"""Tokens equal the backend's, truncation keeps boundary tokens, and the cache never changes results."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from colakit.data.tokenizer import SentenceTokenizer, encode_cached
from colakit.data.tokens import Tokens
from colakit.errors import ColakitError
from colakit.utils import array_cache as cache_module
from colakit.utils.array_cache import ArrayCache, default_cache

SENTENCES = (
    "The cat that these dogs like sleeps.",
    "",
    "Café 猫 🐈‍⬛ \u2028 zażółć.",
    "a",
    '"Quoted," she said  twice.',
)
BOUNDARIES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture
def tokenizer(toy: Path) -> SentenceTokenizer:
    return SentenceTokenizer.from_base(toy / "base")


def with_boundaries(tokenizer: SentenceTokenizer, prefix: bool, suffix: bool) -> SentenceTokenizer:
    return SentenceTokenizer.from_dict(tokenizer.to_dict() | {"prefix": prefix, "suffix": suffix})


def rows_of(tokens: Tokens) -> list[list[int]]:
    return [tokens.sentence(i).tolist() for i in range(len(tokens))]


def plain_ids(tokenizer: SentenceTokenizer, sentence: str) -> list[int]:
    return tokenizer.backend.encode(sentence, add_special_tokens=False).ids


def assert_same_tokens(one: Tokens, two: Tokens) -> None:
    assert rows_of(one) == rows_of(two)
    assert (one.ids.dtype, one.offsets.dtype) == (np.int32, np.int64) == (two.ids.dtype, two.offsets.dtype)
    assert one.num_truncated == two.num_truncated


class Counting(SentenceTokenizer):
    """A tokenizer that counts how often it encodes."""

    calls = 0

    def encode(self, sentences: Sequence[str], max_tokens: int | None = None) -> Tokens:
        self.calls += 1
        return super().encode(sentences, max_tokens)


@pytest.fixture
def counting(tokenizer: SentenceTokenizer) -> Counting:
    return Counting(tokenizer.backend, tokenizer.end_of_text_id)


def test_ragged_tokens_equal_the_backends(tokenizer: SentenceTokenizer) -> None:
    tokens = tokenizer.encode(SENTENCES)
    assert len(tokens) == len(SENTENCES)
    assert tokens.lengths.tolist() == [len(row) for row in rows_of(tokens)]
    assert tokens.num_truncated == 0
    for sentence, row in zip(SENTENCES, rows_of(tokens), strict=True):
        assert row == (plain_ids(tokenizer, sentence) or [tokenizer.end_of_text_id])


def test_no_sentences_are_no_tokens(tokenizer: SentenceTokenizer) -> None:
    tokens = tokenizer.encode([])
    assert (len(tokens), len(tokens.ids), tokens.lengths.tolist()) == (0, 0, [])


def test_ids_equal_those_of_transformers(toy: Path, tokenizer: SentenceTokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(str(toy / "base"), local_files_only=True)
    assert tokenizer.end_of_text_id == reference.eos_token_id
    assert tokenizer.vocab_size == len(reference)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=40) | st.sampled_from([*SENTENCES[2:], "x <|endoftext|> y"]))
    def law(sentence: str) -> None:
        expected = reference(sentence, add_special_tokens=False).input_ids
        assert rows_of(tokenizer.encode([sentence])) == [expected or [reference.eos_token_id]]

    law()


def test_decoding_returns_the_sentence_without_boundary_tokens(tokenizer: SentenceTokenizer) -> None:
    both = with_boundaries(tokenizer, True, True)
    tokens = both.encode(SENTENCES)
    assert tuple(both.decode(row) for row in rows_of(tokens)) == SENTENCES


@pytest.mark.parametrize(("prefix", "suffix"), BOUNDARIES)
def test_boundary_tokens_follow_prefix_and_suffix(
    tokenizer: SentenceTokenizer, prefix: bool, suffix: bool
) -> None:
    end = tokenizer.end_of_text_id
    for sentence, row in zip(
        SENTENCES, rows_of(with_boundaries(tokenizer, prefix, suffix).encode(SENTENCES)), strict=True
    ):
        assert row == ([end] * prefix + plain_ids(tokenizer, sentence) + [end] * suffix or [end])


@pytest.mark.parametrize(("prefix", "suffix"), BOUNDARIES)
@pytest.mark.parametrize("max_tokens", [3, 4, 6, 8, 64])
def test_truncation_keeps_boundary_tokens_and_is_counted(
    tokenizer: SentenceTokenizer, prefix: bool, suffix: bool, max_tokens: int
) -> None:
    end, room = tokenizer.end_of_text_id, max_tokens - prefix - suffix
    plain = [plain_ids(tokenizer, sentence) for sentence in SENTENCES]
    tokens = with_boundaries(tokenizer, prefix, suffix).encode(SENTENCES, max_tokens)
    assert rows_of(tokens) == [[end] * prefix + ids[:room] + [end] * suffix or [end] for ids in plain]
    assert tokens.lengths.max() <= max_tokens
    assert tokens.num_truncated == sum(len(ids) > room for ids in plain)


def test_a_sentence_of_maximum_length_is_not_truncated(tokenizer: SentenceTokenizer) -> None:
    length = len(plain_ids(tokenizer, SENTENCES[0]))
    assert tokenizer.encode(SENTENCES[:1], length).num_truncated == 0
    assert tokenizer.encode(SENTENCES[:1], length - 1).num_truncated == 1


@pytest.mark.parametrize(("prefix", "suffix"), BOUNDARIES)
def test_to_dict_and_from_dict_round_trip(tokenizer: SentenceTokenizer, prefix: bool, suffix: bool) -> None:
    one = with_boundaries(tokenizer, prefix, suffix)
    two = SentenceTokenizer.from_dict(one.to_dict())
    assert one.fingerprint() == two.fingerprint()
    assert_same_tokens(one.encode(SENTENCES), two.encode(SENTENCES))


def test_fingerprints_depend_on_boundary_tokens_and_vocabulary(tokenizer: SentenceTokenizer) -> None:
    grown = Tokenizer.from_str(tokenizer.backend.to_str())
    grown.add_tokens(["wug"])
    all_of_them = [with_boundaries(tokenizer, *pair) for pair in BOUNDARIES]
    all_of_them.append(SentenceTokenizer(grown, tokenizer.end_of_text_id))
    assert len({one.fingerprint() for one in all_of_them}) == len(all_of_them)


def test_a_length_limit_of_the_saved_backend_is_ignored(tokenizer: SentenceTokenizer) -> None:
    limited = Tokenizer.from_str(tokenizer.backend.to_str())
    limited.enable_truncation(2)
    limited.enable_padding(length=50)
    limited = SentenceTokenizer(limited, tokenizer.end_of_text_id)
    assert limited.fingerprint() == tokenizer.fingerprint()
    assert_same_tokens(limited.encode(SENTENCES), tokenizer.encode(SENTENCES))


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_a_folder_without_a_tokenizer_is_refused(content: str | None) -> None:
    folder = Path("given")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ColakitError, match=r"given/(tokenizer|vocab)\.json: .*\S"):
        SentenceTokenizer.from_base(folder)


def test_the_cache_computes_once_and_returns_the_same(counting: Counting) -> None:
    cache = ArrayCache(Path("cache"))
    fresh = counting.encode(SENTENCES, 6)
    for _ in range(3):
        assert_same_tokens(encode_cached(counting, SENTENCES, 6, cache), fresh)
    assert counting.calls == 2
    assert cached_file(cache).suffix != ".tmp"


def test_without_a_cache_every_call_computes(counting: Counting) -> None:
    for _ in range(2):
        encode_cached(counting, SENTENCES, None, None)
    assert counting.calls == 2
    assert not list(Path().iterdir())


def test_every_input_of_the_tokens_changes_the_cache_key(tokenizer: SentenceTokenizer) -> None:
    cache = ArrayCache(Path("cache"))
    for one in (tokenizer, with_boundaries(tokenizer, True, False)):
        for max_tokens in (None, 4, 6):
            for sentences in (
                SENTENCES,
                SENTENCES[:2],
                SENTENCES[::-1],
                ["a b"],
                ["a", "b"],
                ["a\0b"],
                [],
                [""],
            ):
                expected = one.encode(sentences, max_tokens)
                assert_same_tokens(encode_cached(one, sentences, max_tokens, cache), expected)


def test_a_new_format_ignores_old_entries(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ArrayCache(Path("cache"))
    encode_cached(counting, SENTENCES, None, cache)
    monkeypatch.setattr(cache_module, "FORMAT", cache_module.FORMAT + 1)
    encode_cached(counting, SENTENCES, None, cache)
    assert counting.calls == 2


def cached_file(cache: ArrayCache) -> Path:
    (path,) = (path for path in cache.folder.rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("length", [0, 1, 100, -200, -1], ids=lambda length: f"[:{length}]")
def test_a_truncated_entry_is_recomputed(counting: Counting, length: int) -> None:
    cache = ArrayCache(Path("cache"))
    fresh = encode_cached(counting, SENTENCES, None, cache)
    path = cached_file(cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert_same_tokens(encode_cached(counting, SENTENCES, None, cache), fresh)
    assert counting.calls == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "garbage", [b"garbage" * 99, b"PK\x03\x04" + bytes(99), b"\x93NUMPY\x01\x00" + bytes(99)]
)
def test_a_damaged_entry_is_recomputed(counting: Counting, garbage: bytes) -> None:
    cache = ArrayCache(Path("cache"))
    fresh = encode_cached(counting, SENTENCES, None, cache)
    cached_file(cache).write_bytes(garbage)
    assert_same_tokens(encode_cached(counting, SENTENCES, None, cache), fresh)


def test_an_entry_of_other_arrays_is_recomputed(counting: Counting) -> None:
    cache = ArrayCache(Path("cache"))
    fresh = encode_cached(counting, SENTENCES, None, cache)
    np.savez(cached_file(cache), ids=fresh.ids)
    assert_same_tokens(encode_cached(counting, SENTENCES, None, cache), fresh)


def test_one_flipped_bit_never_changes_the_arrays() -> None:
    arrays = {"ids": np.arange(5000, dtype=np.int32), "offsets": np.array([0, 7]), "count": np.array(3)}
    cache = ArrayCache(Path("cache"))
    cache.get("kind", {}, lambda: arrays)
    path = cached_file(cache)
    whole = path.read_bytes()
    tail = len(whole) - 900  # the last headers and the directory, beyond the numbers of the first array
    for position in [*range(160), *range(160, tail, 997), *range(tail, len(whole), 3)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        loaded = cache.get("kind", {}, lambda: arrays)
        assert loaded.keys() == arrays.keys(), position
        assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays), position


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.mkdir, (Path("canary"),)  # type: ignore[return-value]


def test_a_pickle_in_the_cache_never_runs(counting: Counting) -> None:
    cache = ArrayCache(Path("cache"))
    fresh = encode_cached(counting, SENTENCES, None, cache)
    evil = np.array([Payload()], dtype=object)
    np.savez(cached_file(cache), ids=evil, offsets=evil, num_truncated=evil)
    assert_same_tokens(encode_cached(counting, SENTENCES, None, cache), fresh)
    assert not Path("canary").exists()


@pytest.mark.parametrize("broken", ["folder", "parent"])
def test_an_unwritable_cache_is_skipped(counting: Counting, broken: str) -> None:
    folder = Path("cache")
    folder.write_text("a file stands here")
    cache = ArrayCache(folder / "deep" if broken == "parent" else folder)
    for _ in range(2):
        assert_same_tokens(encode_cached(counting, SENTENCES, None, cache), counting.encode(SENTENCES))
    assert counting.calls == 4
    assert list(Path().rglob("*")) == [folder]


def test_a_full_disk_leaves_no_partial_entry(counting: Counting) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = ArrayCache(Path("cache"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # bytes of any file written from now on
    try:
        tokens = encode_cached(counting, SENTENCES, None, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same_tokens(tokens, counting.encode(SENTENCES))
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


def test_concurrent_requests_compute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colakit.utils.locks.QUIET_SECONDS", 0)
    started, messages, both_started = [], [], threading.Barrier(2)

    def compute() -> dict[str, np.ndarray]:
        started.append(threading.current_thread())
        deadline = time.monotonic() + 20
        while not messages and time.monotonic() < deadline:  # until the other thread waits
            time.sleep(0.01)
        return {"values": np.arange(3)}

    def request() -> None:
        both_started.wait()
        cache = ArrayCache(tmp_path, messages.append)
        assert cache.get("kind", {"a": 1}, compute)["values"].tolist() == [0, 1, 2]

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(request), pool.submit(request)]:
            done.result()
    assert len(started) == 1
    assert messages == [f"kind: waiting for process {os.getpid()}, which is computing the same arrays"]
    assert [path.suffix for path in (tmp_path / "kind").iterdir()] == [".arrays"]  # no lock file remains


def test_after_a_failure_the_next_request_computes(tmp_path: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise ValueError("no")

    cache = ArrayCache(tmp_path)
    with pytest.raises(ValueError, match="no"):
        cache.get("kind", {}, fail)
    assert cache.get("kind", {}, lambda: {"one": np.ones(1)})["one"].tolist() == [1]


def test_the_default_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    assert default_cache() == Path("xdg/colakit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "colakit"
