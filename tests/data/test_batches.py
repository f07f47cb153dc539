"""An epoch's batches contain every sentence once and little padding."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from colakit.data.batches import Batch, Examples, PairBatch, PairExamples, micro_batches, pad, plan_epoch
from colakit.data.corpora import load_corpus
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens, plan_inference

LAWS = settings(max_examples=150, deadline=None)


def examples_of(lengths: list[int], with_teacher: bool = True) -> Examples:
    """All tokens of sentence i are i + 1; its label is i, its teacher logits (i, -i)."""
    count = len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), lengths)
    teacher = np.stack([np.arange(count), -np.arange(count)], axis=1).astype(np.float32)
    return Examples(Tokens(ids, offsets), np.arange(count), teacher if with_teacher else None)


def waste(lengths: NDArray[np.int64], batches: list[NDArray[np.int64]]) -> float:
    """Return the fraction of padding in the batches."""
    return 1 - float(lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches))


lengths_of_sentences = st.lists(st.integers(1, 40), min_size=1, max_size=300)


@LAWS
@given(
    lengths=lengths_of_sentences,
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 99),
)
def test_epoch_has_every_sentence_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    plan = plan_epoch(np.array(lengths), batch_size, seed, epoch)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in plan) <= 1
    assert max(len(batch) for batch in plan) <= batch_size


@LAWS
@given(
    lengths=lengths_of_sentences,
    pairs_a_batch=st.integers(1, 9),
    world_size=st.integers(1, 3),
    micro_pairs=st.integers(1, 4),
    max_micro_batch_size=st.none() | st.integers(1, 9),
)
def test_pairs_stay_together_in_every_batch_and_micro_batch(
    lengths: list[int],
    pairs_a_batch: int,
    world_size: int,
    micro_pairs: int,
    max_micro_batch_size: int | None,
) -> None:
    plain = examples_of([length for length in lengths for _ in range(2)])
    examples = PairExamples(plain.tokens, plain.labels)
    plan = examples.plan_epoch(2 * pairs_a_batch, 0, 0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(examples)))
    seen = []
    for index in plan:
        for rank in range(world_size):
            shares = micro_batches(examples, index, 2 * micro_pairs, rank=rank, world_size=world_size)
            for part in (part for share in shares for part in share.split(max_micro_batch_size)):
                assert isinstance(part, PairBatch)
                numbers = (part.input_ids[:, 0] - 1).view(-1, 2)
                assert (numbers[:, 1] == numbers[:, 0] + 1).all()
                assert (numbers[:, 0] % 2 == 0).all()
                seen += numbers.flatten().tolist() if part.weight else []
    assert sorted(seen) == list(range(len(examples)))


def test_epoch_depends_only_on_seed_and_number() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, size=400)
    torch.manual_seed(0)
    plans = [plan_epoch(lengths, 16, 5, 2)]
    torch.manual_seed(1)
    plans.append(plan_epoch(lengths, 16, 5, 2))
    assert all(np.array_equal(a, b) for a, b in zip(*plans, strict=True))


@pytest.mark.parametrize("other", [(5, 3), (6, 2)], ids=["epoch", "seed"])
def test_epochs_and_seeds_differ(other: tuple[int, int]) -> None:
    lengths = np.random.default_rng(0).integers(3, 30, size=400)
    one, two = (np.concatenate(plan_epoch(lengths, 16, *key)) for key in ((5, 2), other))
    assert not np.array_equal(one, two)


def test_batches_are_not_ordered_by_length() -> None:
    lengths = np.arange(1, 257)
    plan = plan_epoch(lengths, 16, 0, 0)
    longest = [int(lengths[batch].max()) for batch in plan]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@LAWS
@given(lengths=lengths_of_sentences, batch_size=st.integers(1, 40))
def test_inference_reads_every_sentence_once_in_order_of_length(lengths: list[int], batch_size: int) -> None:
    order = np.concatenate(plan_inference(np.array(lengths), batch_size))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[order]) >= 0).all()


@LAWS
@given(lengths=lengths_of_sentences, batch_size=st.integers(1, 40), enough=st.integers(1, 200))
def test_batch_with_enough_tokens_takes_no_longer_sentence(
    lengths: list[int], batch_size: int, enough: int
) -> None:
    array = np.array(lengths)
    plan = plan_inference(array, batch_size, enough)
    order = np.concatenate(plan)
    assert order.tolist() == np.concatenate(plan_inference(array, batch_size)).tolist()
    assert max(map(len, plan)) <= batch_size
    for batch, after in itertools.pairwise(plan):
        longest = array[batch].max()
        size = len(batch) * longest
        assert (
            len(batch) == batch_size or size >= 4 * enough or (size >= enough and array[after[0]] > longest)
        )
    for batch in plan:
        assert (len(batch) - 1) * max(array[batch[:-1]], default=0) < 4 * enough
        before = array[batch[array[batch] < array[batch].max()]]
        assert len(before) * (before.max() if len(before) else 0) < enough, (
            "a batch with enough tokens was padded further"
        )


def test_inference_plan_of_no_sentences_is_empty() -> None:
    assert plan_inference(np.zeros(0, dtype=np.int64), 8) == []
    assert plan_inference(np.zeros(0, dtype=np.int64), 8, 100) == []


@LAWS
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12), data=st.data())
def test_pad_equals_the_plain_loop(lengths: list[int], data: st.DataObject) -> None:
    tokens = examples_of(lengths).tokens
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    width = max(lengths[i] for i in index)
    input_ids, attention_mask = pad(tokens, np.array(index))
    assert input_ids.dtype == attention_mask.dtype == torch.int64
    for row, i in enumerate(index):
        blank = [0] * (width - lengths[i])
        assert input_ids[row].tolist() == [*tokens.sentence(i).tolist(), *blank]
        assert attention_mask[row].tolist() == [*[1] * lengths[i], *blank]


def test_batch_has_labels_teacher_logits_and_weight() -> None:
    batch = examples_of([2, 1, 3]).batch([2, 0], weight=0.5).to(torch.device("cpu"))
    assert isinstance(batch, Batch)
    assert len(batch) == 2
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0]
    assert batch.teacher_logits is not None
    assert batch.teacher_logits.tolist() == [[2.0, -2.0], [0.0, 0.0]]
    assert batch.weight == 0.5
    assert examples_of([2, 1], with_teacher=False).batch([0]).teacher_logits is None


@LAWS
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    micro_batch_size=st.integers(1, 12),
    world_size=st.integers(1, 5),
)
def test_micro_batches_of_all_ranks_partition_the_batch(
    lengths: list[int], micro_batch_size: int, world_size: int
) -> None:
    examples = examples_of(lengths)
    index = np.random.default_rng(0).permutation(len(lengths))
    by_rank = [
        micro_batches(examples, index, micro_batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    flat = [batch for batches in by_rank for batch in batches]
    assert {batch.weight for batch in flat} <= {0.0, 1.0}
    assert all(1 <= len(batch) <= micro_batch_size for batch in flat)
    assert all(len(batch) == 1 for batch in flat if batch.weight == 0)
    real = [int(first) - 1 for batch in flat if batch.weight for first in batch.input_ids[:, 0]]
    assert sorted(real) == list(range(len(lengths)))


@pytest.fixture(scope="module")
def cola_lengths(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.int64]:
    """GPT-2 tokens of CoLA's train sentences."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(shared / "gpt2-tokenizer" / name, folder / name)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    train = load_corpus(shared / "cola" / "cola_public.zip").split("train")
    return SentenceTokenizer.from_base(folder).encode(train.sentences).lengths


def test_cola_lengths_equal_the_published_ones(cola_lengths: NDArray[np.int64]) -> None:
    assert round(float(cola_lengths.mean()), 1) == 9.4
    assert np.percentile(cola_lengths, [50, 95, 100]).tolist() == [9, 17, 45]
    assert round(100 * float((cola_lengths > 20).mean()), 1) == 2.2


def test_less_than_a_tenth_of_cola_batches_is_padding(cola_lengths: NDArray[np.int64]) -> None:
    grouped = [waste(cola_lengths, plan_epoch(cola_lengths, 32, 0, epoch)) for epoch in range(5)]
    order = np.random.default_rng(0).permutation(len(cola_lengths))
    ungrouped = waste(cola_lengths, np.array_split(order, len(order) // 32))
    assert ungrouped > 0.5
    assert float(np.mean(grouped)) < 0.1
