"""The transfer set of a run: made once, kept in the cache, shared by every seed; and the control's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from colakit.api.session import Session
from colakit.config.settings import TransferSettings
from colakit.data.corpora import COLA_LABELS, Split, join_splits
from colakit.data.corruption import corrupt_sentences
from colakit.data.running_text import text_files, whole_sentences
from colakit.distillation import samplers as writing
from colakit.distillation.collector import FORMAT, WORDS, Collector, shares
from colakit.distillation.tuned_sampler import TunedSampler
from colakit.errors import ColakitError
from colakit.training.task_data import TaskData
from colakit.utils.array_cache import pack_lines, unpack_lines
from colakit.utils.files import sha256_of

LEXICON = 50_000  # sentences of text that corruptions take their words from


def transfer_set(
    session: Session, task: TaskData, settings: TransferSettings, base: Callable[[], str]
) -> Split:
    """Return `settings.size` times as many unlabelled sentences as train has.

    None stands in train, in the held-out slice, or in any other split of the corpus, whatever its case,
    spaces and punctuation.

    Args:
        base: returns the one to sample from, where samples are wanted and `settings.language_model` is none.
    """
    wanted = round(settings.size * len(task.train))
    if not wanted:
        return Split("transfer", ())
    writer = TunedSampler(session, task, settings.language_model or base()) if settings.writes else None
    measuring = [task.val, *(split for name, split in task.corpus.splits.items() if name != "train")]
    key = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json", exclude={"text", "language_model", "sampler_epochs"}),
        "wanted": wanted,
        "train": task.train.fingerprint(),
        "forbidden": [split.fingerprint() for split in measuring],
        "text": [sha256_of(file) for file in _text(settings)],
        "writer": writer and {**writer.identity, "sampling": writing.FORMAT},
    }

    def gather() -> list[str]:
        session.reporter.say(f"gathering a transfer set of {wanted:,} sentences")
        forbidden = [sentence for split in measuring for sentence in split.sentences]
        collector = Collector(forbidden, known=task.train.sentences, lengths=_lengths(task.train))
        sources = Sources(settings, task.train.sentences, writer, collector.is_forbidden)
        with session.reporter.progress("sentences", wanted) as bar:
            for name, share in shares(wanted, settings.sources).items():
                collector.fill(sources.draw(name, share), share, name, bar.advance)
        return collector.sentences

    return Split(
        "transfer", tuple(unpack_lines(session.arrays.get("transfer", key, lambda: pack_lines(gather()))))
    )


def augmented(session: Session, task: TaskData) -> Split:
    """Return train and `transfer.size` times as much again, labelled by rule, with train's share of labels.

    Near misses of train's sentences are called unacceptable; acceptable ones of train are repeated. It is
    what a student without a teacher can be given of the same size.

    Raises:
        ColakitError: if the labels are not CoLA's, or there is to be no transfer set.
    """
    train = task.train
    if not session.settings.transfer.size:
        raise ColakitError("train_scratch.augmented: transfer.size is 0", hint="Set transfer.size.")
    if task.corpus.label_names != COLA_LABELS:
        raise ColakitError(
            "without a teacher, only near misses of sentences of CoLA's two labels can be labelled",
            hint="Set train_scratch.augmented=false.",
        )
    settings = session.settings.transfer.model_copy(update={"sources": {"corrupt": 1.0}, "text": None})
    made = transfer_set(session, task, settings, lambda: session.settings.base)
    labels = train.require_labels()
    num_good = round(len(made) * float(labels.mean()))
    rng = np.random.default_rng(settings.seed)
    good = np.flatnonzero(labels == 1)
    repeats = -(-num_good // len(good))
    repeated = (
        np.concatenate([rng.permutation(good) for _ in range(repeats)])[:num_good] if num_good else good[:0]
    )
    bad = made.take(np.arange(len(made) - num_good), "transfer")
    false = Split("transfer", bad.sentences, np.zeros(len(bad), dtype=np.int64))
    return join_splits("train", [train, train.take(repeated, "train"), false])


class Sources:
    """Where sentences come from, by the names of `transfer.sources`.

    Args:
        train: sentences of train.
        writer: what samples; None where nothing asks for it.
        is_forbidden: tells the sentences that measure, which are not corrupted either.
    """

    def __init__(
        self,
        settings: TransferSettings,
        train: Sequence[str],
        writer: TunedSampler | None,
        is_forbidden: Callable[[str], bool],
    ) -> None:
        self.settings, self.train, self.writer = settings, train, writer
        self.is_forbidden = is_forbidden
        self.rng = random.Random(settings.seed)
        self.sampled: list[str] = []  # so far, those that were not taken among them
        self.samples = self._remembered()

    def draw(self, name: str, wanted: int) -> Iterator[str]:
        """Yield sentences of one source, at least `wanted` of them where it has so many."""
        match name:
            case "corrupt":
                return corrupt_sentences(self.train, self.train, self.rng)
            case "word_resample":
                assert self.writer is not None
                return self.writer.resampled()
            case "lm_sample":
                return self.samples
            case "lm_sample_corrupt":
                for _ in islice(self.samples, max(0, wanted - len(self.sampled))):
                    pass
                return corrupt_sentences(self.sampled, [*self.train, *self.sampled[:LEXICON]], self.rng)
        whole = whole_sentences(_text(self.settings), WORDS)
        found = [sentence for sentence in whole if not self.is_forbidden(sentence)]
        self.rng.shuffle(found)
        return iter(found) if name == "text" else corrupt_sentences(found, found[:LEXICON], self.rng)

    def _remembered(self) -> Iterator[str]:
        """Yield what is sampled, and remember it."""
        assert self.writer is not None
        for sentence in self.writer.samples():
            if not self.is_forbidden(sentence):
                self.sampled.append(sentence)
                yield sentence


def _lengths(train: Split) -> range:
    longest = max((len(sentence.split()) for sentence in train.sentences), default=0)
    return range(WORDS.start, max(WORDS.stop, longest + 1))


def _text(settings: TransferSettings) -> list[Path]:
    return [] if settings.text is None else text_files(settings.text)
