"""`colakit pretrain --objective real-fake`: a base learns to tell real sentences from corrupted ones.

A second stage of pre-training. Real sentences are drawn from `pretrain.text`; each is trained on together
with one corrupted copy.
"""

from __future__ import annotations

import random
from itertools import chain

import numpy as np

from colakit.api.session import Session
from colakit.config.pretrain import RealFakeSettings
from colakit.data.batches import PairExamples
from colakit.data.corpora import Corpus, Split
from colakit.data.corruption import Corruptor
from colakit.data.running_text import FORMAT, read_documents, text_files, whole_sentences
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.model import set_dropout
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, resolve_base
from colakit.training.averaging import StartAverage
from colakit.training.classifier_trainer import MAY_CHANGE, ClassifierJob, ClassifierTrainer
from colakit.training.epochs import steps_per_epoch
from colakit.training.job import settings_identity
from colakit.training.model_setup import base_origin
from colakit.training.objectives import discrimination
from colakit.training.optimizers import tuning_optimizer
from colakit.training.run import TrainingRun
from colakit.training.task_data import TaskData, labelled_examples
from colakit.utils.array_cache import pack_lines, unpack_lines
from colakit.utils.files import sha256_of

LABELS = ("corrupted", "real")
WORDS = range(4, 23)  # allowed words in a sentence
LEXICON = 50_000  # sentences that supply the words of corruptions
PRETRAIN_SETTINGS = {"objective", "text", "upsample", "init_from", "start_weight"}  # the others are unused


def refuse_unused(session: Session) -> None:
    """Refuse typed settings that belong to the other objective; a config file may set both."""
    objective = session.settings.pretrain.objective
    for key in filter(session.resolved.was_typed, session.resolved.origins):
        section, _, name = key.partition(".")
        hint = "Leave it out."
        if objective == "real-fake":
            unused = section == "pretrain" and name not in PRETRAIN_SETTINGS
            if name in RealFakeSettings.model_fields:
                hint = f"Set real_fake.{name} instead: --set real_fake.{name}=VALUE"
        else:
            unused = section == "real_fake"
        if unused:
            raise ColakitError(f"{key} is not used by --objective {objective}", hint=hint)


def load_real_fake_data(session: Session) -> TaskData:
    """Return pairs of a real sentence and its corrupted copy, split into train and val."""
    settings, seed = session.settings.real_fake, session.settings.seed
    sentences = _draw(session, settings.sentences)
    corruptor = Corruptor(sentences[:LEXICON])
    rng = random.Random(seed)
    pairs = [
        (real, corrupted) for real in sentences if (corrupted := corruptor.corrupt(real, rng)) is not None
    ]
    num_val = max(1, round(settings.val_fraction * len(pairs)))
    splits = {"train": _split("train", pairs[num_val:]), "val": _split("val", pairs[:num_val])}
    corpus = Corpus("real and corrupted sentences", LABELS, splits)
    return TaskData(corpus, splits["train"], splits["val"], {})


def _split(name: str, pairs: list[tuple[str, str]]) -> Split:
    labels = np.tile(np.array([1, 0], dtype=np.int64), len(pairs))
    return Split(name, tuple(sentence for pair in pairs for sentence in pair), labels)


def _draw(session: Session, num_sentences: int) -> list[str]:
    """Return up to `num_sentences` distinct sentences, from each text in proportion to its upsampled size.

    They are cached, because reading hundreds of megabytes takes minutes.
    """
    settings, seed = session.settings.pretrain, session.settings.seed
    files = {name: text_files(path) for name, path in settings.text.items()}
    repeats = {name: settings.upsample.get(name, 1) for name in files}
    key = {
        "texts": {name: [[*map(sha256_of, paths)], repeats[name]] for name, paths in files.items()},
        "text_format": FORMAT,
        "words": [WORDS.start, WORDS.stop],
        "sentences": num_sentences,
        "seed": seed,
    }

    def draw() -> list[str]:
        sentences: dict[str, list[str]] = {}
        for name in files:
            session.reporter.say(f"reading {name}")
            sentences[name] = list(
                whole_sentences(chain.from_iterable(map(read_documents, files[name])), WORDS)
            )
        sizes = {name: len(rows) * repeats[name] for name, rows in sentences.items()}
        rng = random.Random(seed)
        distinct: dict[str, None] = {}  # an ordered set
        for name, rows in sentences.items():
            count = round(num_sentences * sizes[name] / max(1, sum(sizes.values())))
            distinct.update(dict.fromkeys(rng.sample(rows, min(count, len(rows)))))
        drawn = list(distinct)
        rng.shuffle(drawn)
        return drawn

    drawn = unpack_lines(session.arrays.get("sentences", key, lambda: pack_lines(draw())))
    if len(drawn) < 10:
        raise ColakitError(
            f"the text has {len(drawn)} sentences of {WORDS.start} to {WORDS.stop - 1} words; 10 are needed",
            hint="Give more text.",
        )
    return drawn


def real_fake_trainer(session: Session, task: TaskData, run: TrainingRun) -> ClassifierTrainer:
    """Return the trainer of the base with a classification head."""
    return ClassifierTrainer(_job(session, task), run)


def _job(session: Session, task: TaskData) -> ClassifierJob:
    """Load the base, add a classification head, and return the job that trains all of it."""
    settings, training = session.settings, session.settings.real_fake
    folder = resolve_base(settings.base, "--init-from")
    seed_everything(settings.seed)
    base = load_gpt(folder)
    fingerprint = base_fingerprint(base)
    set_dropout(base, 0.0)
    model = base.classifier(len(LABELS)).requires_grad_(True)
    classifier = SentenceClassifier(
        model=model,
        tokenizer=load_tokenizer(folder, prefix=True, start=settings.start_token),
        label_names=LABELS,
        max_tokens=base.config.num_positions,
        origin=base_origin(session.command, settings.seed, fingerprint, session.portable_settings(), {}),
    )
    session.compute.place(model)
    train, val = (
        labelled_examples(classifier, split, session.arrays, session.reporter)
        for split in (task.train, task.val)
    )
    return ClassifierJob(
        **session.job_options(),
        settings=training,
        model=model,
        objective=discrimination(training.lm_weight, training.pair_weight),
        optimizer=tuning_optimizer(
            model, lr=training.lr, weight_decay=training.weight_decay, loraplus_lr_ratio=1.0
        ),
        max_steps=training.epochs * steps_per_epoch(train, training.batch_size),
        identity={
            **settings_identity(real_fake=training.model_dump(mode="json", exclude=MAY_CHANGE)),
            "max_tokens": classifier.max_tokens,
            "base": fingerprint,
            "tokenizer": classifier.tokenizer.fingerprint(),
            "start_weight": settings.pretrain.start_weight,
            **task.identity(),
        },
        compute=session.gpt_training_compute,
        lines=[f"sentences: {len(task.train):,}, half of them corrupted"],
        summary={"base": classifier.origin["base"]},
        classifier=classifier,
        train=PairExamples(**vars(train)),
        val=val,
        dev={},
        splits={"val": task.val},
        base=StartAverage(model, settings.pretrain.start_weight),
    )
