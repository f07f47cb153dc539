"""The transfer set (unlabelled sentences for teachers to label, cached) and the control's augmented data."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from colakit.config.student import TransferSettings
from colakit.data.builtin.corpus import VERSION, grammar_sentences
from colakit.data.columnar import HUB_PREFIX
from colakit.data.corpora import COLA_LABELS, Split, join_splits
from colakit.data.corruption import corrupt_sentences
from colakit.data.running_text import read_documents, text_files, whole_sentences
from colakit.data.sentences import open_sentences, sentence_column
from colakit.data.tables import Reading, table_format
from colakit.distillation.collector import FORMAT, WORDS, Collector, shares
from colakit.distillation.samplers import FORMAT as SAMPLING_FORMAT
from colakit.distillation.selection import least_certain, selection_identity
from colakit.distillation.tuned_sampler import TunedSampler
from colakit.errors import ColakitError
from colakit.training.task_data import TaskData
from colakit.utils.array_cache import ArrayCache, pack_lines, unpack_lines
from colakit.utils.console import Reporter
from colakit.utils.files import sha256_of
from colakit.utils.unpacking import DECODERS

LEXICON = 50_000  # sentences from which corruptions take their words
MEASURED = 500  # sentences of a source that are drawn for an estimate
BY_CONTENT = {"text", "text_column", "language_model", "select_for"}  # settings compared by content
PACKED = 3  # characters of text per byte of a compressed file


def transfer_size(settings: TransferSettings, num_train: int) -> int:
    """Return the number of sentences in the transfer set: it has exactly as many, or making it fails."""
    return round(settings.size * num_train)


def epoch_size(settings: TransferSettings, num_train: int, upsample: int) -> int:
    """Return the sentences in an epoch of `distill`: the transfer set, and train `upsample` times."""
    size = transfer_size(settings, num_train)
    return num_train * (upsample if size else 1) + size


def make_transfer_set(
    task: TaskData,
    settings: TransferSettings,
    arrays: ArrayCache,
    reporter: Reporter,
    sampler: TunedSampler | None = None,
) -> Split:
    """Return `settings.size` times as many unlabelled sentences as train has.

    None of them is in train, the validation split or another split of the corpus, compared without case,
    spaces and punctuation.

    Args:
        sampler: needed if `settings.needs_sampler`.
    """
    if not (size := transfer_size(settings, len(task.train))):
        return Split("transfer", ())
    reserved = _reserved(task)

    def collect() -> list[str]:
        drawn = round(size * settings.drawn_for_each)
        reporter.say(f"making a transfer set of {size:,} sentences")
        forbidden = [sentence for split in reserved for sentence in split.sentences]
        longest = max((len(sentence.split()) for sentence in task.train.sentences), default=0)
        lengths = range(WORDS.start, max(WORDS.stop, longest + 1))
        collector = Collector(forbidden, known=task.train.sentences, lengths=lengths)
        sources = Sources(settings, task, sampler, collector.is_forbidden)
        with reporter.progress("making sentences", drawn) as bar:
            for name, share in shares(drawn, settings.sources).items():
                collector.fill(sources.draw(name, share), share, name, bar.advance)
        if settings.select_for is None:
            return collector.sentences
        return least_certain(settings.select_for, collector.sentences, size)

    key = _key(task, settings, sampler)
    return Split("transfer", tuple(unpack_lines(arrays.get("transfer", key, lambda: pack_lines(collect())))))


def cached_transfer_set(
    task: TaskData, settings: TransferSettings, arrays: ArrayCache, sampler: TunedSampler | None
) -> Split | None:
    """Return what `make_transfer_set` would return, if it is empty or cached."""
    if not transfer_size(settings, len(task.train)):
        return Split("transfer", ())
    cached = arrays.load("transfer", _key(task, settings, sampler))
    return None if cached is None else Split("transfer", tuple(unpack_lines(cached)))


def measure_transfer_set(task: TaskData, settings: TransferSettings, sampler: TunedSampler | None) -> float:
    """Return the expected seconds of `make_transfer_set`, from a few sentences of each source."""
    size = transfer_size(settings, len(task.train))
    counts = shares(round(size * settings.drawn_for_each), settings.sources)
    num_corrupted = sum(count for name, count in counts.items() if name.endswith("corrupt"))
    num_sampled = max(counts.get("lm_sample", 0), counts.get("lm_sample_corrupt", 0))
    seconds = 0.0
    if num_corrupted:
        train = task.train.sentences
        seconds += _seconds_of(corrupt_sentences(train, train, random.Random(0)), num_corrupted)
    if num_pairs := counts.get("grammar"):
        seconds += _seconds_of(grammar_sentences(settings.seed), num_pairs)
    if settings.select_for is not None:
        examples = list(islice(cycle(task.train.sentences), MEASURED))
        began = time.monotonic()
        least_certain(settings.select_for, examples, 1)
        seconds += (time.monotonic() - began) * sum(counts.values()) / MEASURED
    if settings.text is not None:
        paths = _files(settings)
        size = sum(path.stat().st_size * (PACKED if path.suffix in DECODERS else 1) for path in paths)
        sentences = islice(whole_sentences(_documents(task, settings), WORDS), LEXICON)
        length = sum(map(len, islice(sentences, MEASURED))) / MEASURED
        seconds += _seconds_of(sentences, round(size / max(1.0, length)))
    if num_sampled:
        assert sampler is not None
        seconds += sampler.measure_sentences(num_sampled)
    if num_words := counts.get("word_resample"):
        assert sampler is not None
        seconds += sampler.measure_words(num_words)
    return seconds


def _seconds_of(sentences: Iterator[str], count: int) -> float:
    """Return the expected seconds of `count` sentences, from the first ones; the very first is set-up."""
    begin = time.monotonic()
    next(sentences, None)
    first = time.monotonic()
    drawn = sum(1 for _ in islice(sentences, MEASURED))
    return first - begin + count * (time.monotonic() - first) / max(1, drawn)


def _reserved(task: TaskData) -> list[Split]:
    """Return the splits whose sentences must not be in a transfer set."""
    return [task.val, *(split for name, split in task.corpus.splits.items() if name != "train")]


def _key(task: TaskData, settings: TransferSettings, sampler: TunedSampler | None) -> dict[str, Any]:
    """Return plain data that determines a transfer set."""
    return {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json", exclude=BY_CONTENT | {"sampler_epochs", "candidates"}),
        "wanted": transfer_size(settings, len(task.train)),
        "train": task.train.fingerprint(),
        "forbidden": [split.fingerprint() for split in _reserved(task)],
        "text": _text_digests(task, settings),
        **({"table": [_text_column(task, settings), *Reading.of(task.data)]} if _has_table(settings) else {}),
        **selection_identity(settings),
        **({"grammar": VERSION} if "grammar" in settings.sources else {}),
        "writer": sampler and {**sampler.identity, "sampling": SAMPLING_FORMAT},
    }


def augment(task: TaskData, settings: TransferSettings, arrays: ArrayCache, reporter: Reporter) -> Split:
    """Return train and `transfer.size` times as many sentences labelled by rule, with train's label rates.

    Corrupted sentences of train are labelled unacceptable; acceptable ones of train are repeated. A student
    without a teacher can get training data of the same size this way.

    Raises:
        ColakitError: if the labels are not CoLA's, or `transfer.size` is 0.
    """
    train = task.train
    if not settings.size:
        raise ColakitError("train_scratch.augmented: transfer.size is 0", hint="Set transfer.size.")
    if task.corpus.label_names != COLA_LABELS:
        raise ColakitError(
            "train_scratch.augmented: corrupted sentences can be labelled only with CoLA's two labels",
            hint="Set train_scratch.augmented=false.",
        )
    corrupt_only = settings.model_copy(update={"sources": {"corrupt": 1.0}, "text": None})
    made = make_transfer_set(task, corrupt_only, arrays, reporter)
    labels = train.require_labels()
    num_good = round(len(made) * float(labels.mean()))
    rng = np.random.default_rng(settings.seed)
    good = np.flatnonzero(labels == 1)
    passes = -(-num_good // len(good))
    repeated = (
        np.concatenate([rng.permutation(good) for _ in range(passes)])[:num_good] if num_good else good[:0]
    )
    bad = made.take(np.arange(len(made) - num_good), "transfer")
    unacceptable = Split("transfer", bad.sentences, np.zeros(len(bad), dtype=np.int64))
    return join_splits("train", [train, train.take(repeated, "train"), unacceptable])


class Sources:
    """Iterators over sentences, by the names of `transfer.sources`.

    Args:
        sampler: None if no source needs it.
        is_forbidden: returns whether a sentence is in a split that is evaluated; these are not corrupted.
    """

    def __init__(
        self,
        settings: TransferSettings,
        task: TaskData,
        sampler: TunedSampler | None,
        is_forbidden: Callable[[str], bool],
    ) -> None:
        self.settings, self.task, self.sampler = settings, task, sampler
        self.train = task.train.sentences
        self.is_forbidden = is_forbidden
        self.rng = random.Random(settings.seed)
        self.sampled: list[str] = []  # all samples so far, also those that were not collected
        self.samples = self._recorded_samples()

    def draw(self, name: str, count: int) -> Iterator[str]:
        """Yield sentences of one source, at least `count` of them if it has so many."""
        match name:
            case "corrupt":
                return corrupt_sentences(self.train, self.train, self.rng)
            case "grammar":
                return grammar_sentences(self.settings.seed)
            case "word_resample":
                assert self.sampler is not None
                return self.sampler.word_resamples()
            case "lm_sample":
                return self.samples
            case "lm_sample_corrupt":
                for _ in islice(self.samples, max(0, count - len(self.sampled))):
                    pass
                return corrupt_sentences(self.sampled, [*self.train, *self.sampled[:LEXICON]], self.rng)
        whole = whole_sentences(_documents(self.task, self.settings), WORDS)
        allowed = [sentence for sentence in whole if not self.is_forbidden(sentence)]
        self.rng.shuffle(allowed)
        return iter(allowed) if name == "text" else corrupt_sentences(allowed, allowed[:LEXICON], self.rng)

    def _recorded_samples(self) -> Iterator[str]:
        assert self.sampler is not None
        for sentence in self.sampler.lm_samples():
            if not self.is_forbidden(sentence):
                self.sampled.append(sentence)
                yield sentence


def _files(settings: TransferSettings) -> list[Path]:
    """Return the files of the transfer text; a dataset of the hub has none."""
    return [] if settings.text is None or _is_hub(settings) else text_files(settings.text)


def _is_hub(settings: TransferSettings) -> bool:
    return settings.text is not None and settings.text.startswith(HUB_PREFIX)


def _text_digests(task: TaskData, settings: TransferSettings) -> list[str]:
    if not _is_hub(settings):
        return [sha256_of(file) for file in _files(settings)]
    digest = hashlib.sha256()
    for text in _documents(task, settings):
        digest.update(json.dumps(text).encode())
    return [digest.hexdigest()]


def _has_table(settings: TransferSettings) -> bool:
    return any(table_format(file.name) for file in _files(settings))


def _text_column(task: TaskData, settings: TransferSettings) -> str | None:
    return task.data.text_column if settings.text_column is None else settings.text_column


def _documents(task: TaskData, settings: TransferSettings) -> Iterator[str]:
    """Yield the documents of the transfer text; a row of a table is one."""
    column = _text_column(task, settings)
    for file in [settings.text] if _is_hub(settings) else _files(settings):
        if isinstance(file, Path) and not table_format(file.name):
            yield from read_documents(file)
            continue
        with open_sentences(str(file), Reading.of(task.data), column) as table:
            name = sentence_column(table, settings.text_column, column, setting="transfer.text_column")
            yield from (text for _, text in table.with_texts(name))
