"""`colakit discriminate`: a second stage of pre-training, telling real sentences from corrupted ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from colakit.api.finetune import base_origin
from colakit.api.session import Resume, Session
from colakit.data.batches import PairExamples
from colakit.data.corpora import Corpus, Split
from colakit.data.corruption import Corruptor
from colakit.data.running_text import FORMAT, check_upsample, text_files, whole_sentences
from colakit.data.tokens import SentenceTokenizer
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.model import GPT, GPTClassifier, set_dropout
from colakit.models.meta_device import without_weights
from colakit.storage.gpt2 import base_fingerprint, load_gpt, plan_config, resolve_base
from colakit.training.averaging import StartAverage
from colakit.training.job import Job
from colakit.training.objectives import discrimination
from colakit.training.run import run_job
from colakit.training.task_data import TaskData, examples
from colakit.utils.array_cache import pack_lines, unpack_lines
from colakit.utils.files import sha256_of

LABELS = ("corrupted", "real")
WORDS = range(4, 23)  # of a sentence that is used
LEXICON = 50_000  # sentences that corruptions take their words from


def run(session: Session, *, resume: Resume) -> dict[str, Any]:
    """Teach the base, and write it to `base/` in the run folder."""
    if not session.settings.pretrain.text:
        raise ColakitError("nothing to read", hint="Name text: --set pretrain.text.NAME=PATH")
    check_upsample(session.settings.pretrain.upsample, session.settings.pretrain.text)
    return run_job(session, _build, _plan, resume=resume, load=load_real_and_corrupted)


def _plan(session: Session, task: TaskData) -> GPTClassifier:
    with without_weights():
        return GPT(plan_config(session.settings.base)).classifier(len(LABELS))


def load_real_and_corrupted(session: Session) -> TaskData:
    """Draw sentences from the text, corrupt a copy of each, and hold a slice of them out."""
    settings, seed = session.settings.discriminate, session.settings.seed
    drawn = _draw(session, settings.sentences)
    corruptor = Corruptor(drawn[:LEXICON])
    rng = random.Random(seed)
    pairs = [(real, corrupted) for real in drawn if (corrupted := corruptor.corrupt(real, rng)) is not None]
    num_held = max(1, round(settings.val_fraction * len(pairs)))
    parts = {"train": pairs[num_held:], "val": pairs[:num_held]}
    splits = {name: _split(name, part) for name, part in parts.items()}
    corpus = Corpus("real and corrupted sentences", LABELS, splits)
    return TaskData(corpus, splits["train"], splits["val"], {})


def _split(name: str, pairs: list[tuple[str, str]]) -> Split:
    labels = np.tile(np.array([1, 0], dtype=np.int64), len(pairs))
    return Split(name, tuple(sentence for pair in pairs for sentence in pair), labels)


def _draw(session: Session, wanted: int) -> list[str]:
    """Return up to `wanted` distinct sentences, from each text in proportion to what an epoch reads of it.

    They are drawn once and kept in the cache: reading hundreds of megabytes takes minutes. There are fewer
    where a text is short, or repeats itself.
    """
    settings, seed = session.settings.pretrain, session.settings.seed
    files = {name: text_files(path) for name, path in settings.text.items()}
    repeats = {name: settings.upsample.get(name, 1) for name in files}
    key = {
        "texts": {
            name: [[sha256_of(file) for file in found], repeats[name]] for name, found in files.items()
        },
        "text_format": FORMAT,
        "words": [WORDS.start, WORDS.stop],
        "sentences": wanted,
        "seed": seed,
    }

    def draw() -> list[str]:
        found: dict[str, list[str]] = {}
        for name in files:
            session.reporter.say(f"reading {name}")
            found[name] = list(whole_sentences(files[name], WORDS))
        weights = {name: len(rows) * repeats[name] for name, rows in found.items()}
        rng = random.Random(seed)
        chosen: dict[str, None] = {}  # a set that keeps its order
        for name, rows in found.items():
            share = round(wanted * weights[name] / max(1, sum(weights.values())))
            chosen.update(dict.fromkeys(rng.sample(rows, min(share, len(rows)))))
        drawn = list(chosen)
        rng.shuffle(drawn)
        return drawn

    drawn = unpack_lines(session.arrays.get("sentences", key, lambda: pack_lines(draw())))
    if len(drawn) < 10:
        raise ColakitError(f"only {len(drawn)} usable sentences in the text", hint="Give more text.")
    return drawn


def _build(session: Session, task: TaskData) -> tuple[Job, list[str]]:
    settings = session.settings
    folder = resolve_base(settings.base)
    base = load_gpt(folder)
    fingerprint = base_fingerprint(base)
    set_dropout(base, 0.0)
    tokenizer = SentenceTokenizer.from_folder(folder, prefix=True)
    classifier = SentenceClassifier(
        model=base.classifier(len(LABELS)).requires_grad_(True),
        tokenizer=tokenizer,
        label_names=LABELS,
        max_tokens=base.config.num_positions,
        origin=base_origin(session, fingerprint),
    )
    session.compute.place(classifier.model)
    job = Job(
        session=session,
        task=task,
        training=settings.discriminate,
        classifier=classifier,
        train=PairExamples(**vars(examples(session, classifier, task.train))),
        val=examples(session, classifier, task.val),
        dev={},
        objective=discrimination(settings.discriminate.lm_weight, settings.discriminate.pair_weight),
        sections=("discriminate",),
        identity={"base": fingerprint, "tokenizer": tokenizer.fingerprint(), **task.identity()},
        base=StartAverage(classifier.model, settings.discriminate.start_weight),
        facts={"base": settings.base},
    )
    return job, [f"sentences: {len(task.train):,}, half of them corrupted"]
