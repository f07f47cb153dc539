"""`colakit discriminate`: a second stage of pre-training, telling real sentences from corrupted ones."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np

from colakit.commands.finetune import base_origin
from colakit.commands.job import Job
from colakit.commands.runner import run_job
from colakit.commands.task import Task, examples
from colakit.context import Context, Resume
from colakit.data.cache import pack_lines, unpack_lines
from colakit.data.corpora import Corpus, Split
from colakit.data.corruptions import Corruptor
from colakit.data.text import FORMAT, check_repeats, text_files, whole_sentences
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.averaging import StartAverage
from colakit.engine.classifier import SentenceClassifier
from colakit.engine.objectives import discrimination
from colakit.errors import ColakitError
from colakit.files import sha256_of
from colakit.interop.gpt2 import base_fingerprint, load_gpt, plan_config, resolve_base
from colakit.models.empty import without_weights
from colakit.models.gpt import GPT, GPTClassifier, set_dropout

LABELS = ("corrupted", "real")
WORDS = range(4, 23)  # of a sentence that is used
LEXICON = 50_000  # sentences that corruptions take their words from


def run(context: Context, *, resume: Resume) -> dict[str, Any]:
    """Teach the base, and write it to `base/` in the run folder."""
    if not context.settings.pretrain.text:
        raise ColakitError("nothing to read", hint="Name text: --set pretrain.text.NAME=PATH")
    check_repeats(context.settings.pretrain.repeats, context.settings.pretrain.text)
    return run_job(context, _build, _plan, resume=resume, load=load_real_and_corrupted)


def _plan(context: Context, task: Task) -> GPTClassifier:
    with without_weights():
        return GPT(plan_config(context.settings.base)).classifier(len(LABELS))


def load_real_and_corrupted(context: Context) -> Task:
    """Draw sentences from the text, corrupt a copy of each, and hold a slice of them out."""
    settings, seed = context.settings.discriminate, context.settings.seed
    drawn = _draw(context, settings.sentences)
    corruptor = Corruptor(drawn[:LEXICON])
    rng = random.Random(seed)
    pairs = [(real, corrupted) for real in drawn if (corrupted := corruptor.corrupt(real, rng)) is not None]
    num_held = max(1, round(settings.holdout * len(pairs)))
    parts = {"train": pairs[num_held:], "holdout": pairs[:num_held]}
    splits = {name: _split(name, part) for name, part in parts.items()}
    corpus = Corpus("real and corrupted sentences", LABELS, splits)
    return Task(corpus, splits["train"], splits["holdout"], {})


def _split(name: str, pairs: list[tuple[str, str]]) -> Split:
    labels = np.tile(np.array([1, 0], dtype=np.int64), len(pairs))
    return Split(name, tuple(sentence for pair in pairs for sentence in pair), labels)


def _draw(context: Context, wanted: int) -> list[str]:
    """Return up to `wanted` distinct sentences, from each text in proportion to what an epoch reads of it.

    They are drawn once and kept in the cache: reading hundreds of megabytes takes minutes. There are fewer
    where a text is short, or repeats itself.
    """
    settings, seed = context.settings.pretrain, context.settings.seed
    files = {name: text_files(path) for name, path in settings.text.items()}
    repeats = {name: settings.repeats.get(name, 1) for name in files}
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
            context.reporter.say(f"reading {name}")
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

    drawn = unpack_lines(context.arrays.get("sentences", key, lambda: pack_lines(draw())))
    if len(drawn) < 10:
        raise ColakitError(f"only {len(drawn)} usable sentences in the text", hint="Give more text.")
    return drawn


def _build(context: Context, task: Task) -> tuple[Job, list[str]]:
    settings = context.settings
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
        origin=base_origin(context, fingerprint),
    )
    context.compute.place(classifier.model)
    job = Job(
        context=context,
        task=task,
        training=settings.discriminate,
        classifier=classifier,
        train=replace(examples(context, classifier, task.train), group=2),  # a pair stays together
        holdout=examples(context, classifier, task.holdout),
        dev={},
        objective=discrimination(settings.discriminate.lm_weight, settings.discriminate.pair_weight),
        sections=("discriminate",),
        identity={"base": fingerprint, "tokenizer": tokenizer.fingerprint(), **task.identity()},
        base=StartAverage(classifier.model, settings.discriminate.start_weight),
        facts={"base": settings.base},
    )
    return job, [f"sentences: {len(task.train):,}, half of them corrupted"]
