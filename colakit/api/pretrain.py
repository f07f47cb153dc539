"""`pretrain`: a GPT-2 or Llama base, trained on running text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from colakit.api import pretrain_real_fake as real_fake
from colakit.api.session import Session
from colakit.config.pretrain import PretrainSettings
from colakit.data.batches import Batch
from colakit.data.running_text import (
    FORMAT,
    Stream,
    Vocabulary,
    check_upsample,
    encode_text,
    read_documents,
    split_val,
    text_files,
)
from colakit.data.tokenizer import SentenceTokenizer, train_tokenizer
from colakit.data.windows import TextSource, Windows
from colakit.errors import ColakitError
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT, set_dropout
from colakit.models.meta_device import without_weights
from colakit.runtime.device import compiles
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import (
    base_fingerprint,
    load_gpt,
    load_tokenizer,
    plan_config,
    read_config,
    resolve_base,
)
from colakit.storage.output import Resume
from colakit.training.averaging import StartAverage
from colakit.training.estimate import EVALUATING, TRAINING, seconds_per_step
from colakit.training.job import settings_identity
from colakit.training.lm_trainer import LMJob, LMTrainer
from colakit.training.loop import StepBatch
from colakit.training.objectives import language_modelling
from colakit.training.optimizers import pretraining_optimizer
from colakit.utils.array_cache import Arrays, pack_lines, unpack_lines
from colakit.utils.files import sha256_of
from colakit.utils.plan import Plan, Stage

MAY_CHANGE = {
    *("text", "init_from", "tokenizer"),
    *("tokens", "log_every", "save_every_steps", "evaluate_every_steps"),
}
"""Settings that may differ on resume. First row: covered by fingerprints. Second row: no influence on the
weights (`tokens` may grow until the learning rate begins to fall)."""
FLAG = "--init-from"
MEASURED_STEPS = 4  # of a dry run
SHAPE = ("family", "vocab_size", "num_layers", "width", "num_heads", "num_kv_heads", "num_positions")


@dataclass(frozen=True)
class Texts:
    """The tokenizer, and text name -> token stream of each split."""

    tokenizer: SentenceTokenizer
    train: dict[str, Stream]
    val: dict[str, Stream]


def with_texts(settings: PretrainSettings, texts: Sequence[Path]) -> PretrainSettings:
    """Return the settings with these text files or folders, named by their file names, if there are any.

    Raises:
        ColakitError: if there is no text, two have one name, or `pretrain.upsample` names another.
    """
    if texts:
        text = {Path(os.path.realpath(path)).name.partition(".")[0]: str(path) for path in texts}
        if len(text) < len(texts):
            raise ColakitError(
                "two texts have the same name", hint="Name them: --set pretrain.text.NAME=PATH"
            )
        settings = settings.model_copy(update={"text": text})
    if not settings.text:
        raise ColakitError("no text to read", hint="Name text files or folders after the command: TEXT…")
    check_upsample(settings.upsample, settings.text)
    return settings


def pretrain(session: Session, *, texts: Sequence[Path], resume: Resume) -> dict[str, Any]:
    """Pre-train a base with `pretrain.objective`, and write it to `base/` in the run folder.

    Args:
        texts: text files or folders, named by their file names; empty uses `pretrain.text`.
    """
    settings = with_texts(session.settings.pretrain, texts)
    real_fake.refuse_unused(session)
    changes: dict[str, Any] = {"pretrain": settings}
    if settings.init_from is not None:
        base = settings.init_from
        config = plan_config(base, FLAG) if session.dry_run else read_config(resolve_base(base, FLAG))
        if settings.objective == "language-modelling":
            changes["pretrain"] = _with_shape_of(session, settings, base, config)
        elif not config.tied_embeddings:
            raise ColakitError(
                f"--objective real-fake: {base} has an output layer of its own (tie_word_embeddings: false)",
                hint="Choose a base whose output layer is its token embedding.",
            )
        else:
            changes["base"] = base
    session.resolved.settings = session.settings.model_copy(update=changes)
    if session.dry_run:
        return _plan(session)
    with session.training_run(resume) as run:
        if run.has_finished_with(session.settings_yaml):
            return run.finished_summary()
        if settings.objective == "real-fake":
            data = real_fake.load_real_fake_data(session)
            return real_fake.real_fake_trainer(session, data, run).train()
        return LMTrainer(_lm_job(session), run).train()


def _with_shape_of(
    session: Session, settings: PretrainSettings, base: str, config: GPTConfig
) -> PretrainSettings:
    """Return the settings with the shape of `base`."""
    shape = {name: getattr(config, name) for name in SHAPE}
    for name, size in shape.items():
        if getattr(settings, name) != size and f"pretrain.{name}" in session.resolved.origins:
            raise ColakitError(
                f"pretrain.{name} is {getattr(settings, name)}, but {size} in {base}",
                hint="The shape follows from the base: leave this out, or leave out --init-from.",
            )
    if settings.window is not None and settings.window > config.num_positions:
        raise ColakitError(
            f"pretrain.window is {settings.window}, but {base} has {config.num_positions} positions",
            hint="Lower --window, or leave it out.",
        )
    if settings.tokenizer is not None:
        raise ColakitError(
            "pretrain.tokenizer: --init-from uses the base's tokenizer",
            hint="Leave this out, or leave out --init-from.",
        )
    try:
        return PretrainSettings.model_validate(settings.model_dump() | shape)
    except ValidationError as error:
        first = error.errors()[0]
        raise ColakitError(
            f"{FLAG} {base}: {'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']})",
            hint="Choose another base.",
        ) from error


def _plan(session: Session) -> dict[str, Any]:
    """Print the plan of a dry run, and return it as plain data."""
    settings = session.settings.pretrain
    if settings.objective == "real-fake":
        task = real_fake.load_real_fake_data(session)
        with without_weights():
            base = GPT(plan_config(session.settings.base, FLAG))
            model = base.classifier(len(real_fake.LABELS))
        return session.plan(task, model, session.measurable_stages(task, real_fake.real_fake_trainer))
    files = {name: text_files(path) for name, path in settings.text.items()}
    if settings.init_from is not None:
        config = plan_config(settings.init_from, FLAG)
    else:
        tokenizer = _given_tokenizer(settings)
        config = _config(settings, settings.vocab_size if tokenizer is None else tokenizer.vocab_size)
    with without_weights():
        parameters = session.print_parameters(GPT(config))
    for name, paths in files.items():
        size = sum(path.stat().st_size for path in paths)
        session.reporter.result(f"{name}: {len(paths)} files, {size:,} bytes")
    steps = settings.max_steps
    session.reporter.result(f"{steps:,} steps of {settings.step_tokens:,} tokens")
    seconds = steps * _step_seconds(session, config)
    stages = [Stage("reading text"), Stage(TRAINING, steps=steps, estimate=seconds), Stage(EVALUATING)]
    plan = Plan(stages, session.reporter)
    plan.show(session.reporter.result)
    counts = {name: len(paths) for name, paths in files.items()}
    return {"parameters": parameters, "steps": steps, "files": counts, "stages": plan.as_dict()}


def _step_seconds(session: Session, config: GPTConfig) -> float:
    """Measure optimizer steps on random tokens, without torch.compile."""
    settings = session.settings.pretrain
    shape = (settings.batch_size, settings.window_tokens + 1)
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    micro_batches = Batch(ids, torch.ones_like(ids)).split(settings.micro_batch_size)
    step = StepBatch(micro_batches, settings.step_tokens, 0, "random tokens")
    model = GPT(config)
    session.compute.place(model)
    return seconds_per_step(
        model,
        pretraining_optimizer(
            model, settings.optimizer, lr=settings.lr, muon_lr=settings.muon_lr, weight_decay=0.0
        ),
        repeat(step, MEASURED_STEPS),
        language_modelling,
        compute=session.gpt_training_compute,
        max_grad_norm=settings.max_grad_norm,
    )


def _lm_job(session: Session) -> LMJob:
    """Read and tokenise the text, build or load the model, and return the job."""
    settings = session.settings.pretrain
    texts = _read(session)
    seed_everything(session.settings.seed)
    tokenizer = texts.tokenizer
    model, identity = _initial_model(settings, tokenizer)
    set_dropout(model, settings.dropout)
    session.compute.place(model)
    compiled, how = compiles(session.compute.device, settings.compile)
    if compiled:
        model.body.compile()
    vocabulary = Vocabulary.of(tokenizer)

    def windows(streams: dict[str, Stream], repeats: dict[str, int], num_tokens: int) -> Windows:
        sources = {name: TextSource(stream, repeats.get(name, 1)) for name, stream in streams.items()}
        return Windows(sources, vocabulary, num_tokens, tokenizer.end_of_text_id)

    train = windows(texts.train, settings.upsample, settings.window_tokens)
    sizes = ", ".join(f"{name} {len(stream):,}" for name, stream in texts.train.items())
    return LMJob(
        **session.job_options(),
        settings=settings,
        model=model,
        objective=language_modelling,
        optimizer=pretraining_optimizer(
            model,
            settings.optimizer,
            lr=settings.lr,
            muon_lr=settings.muon_lr,
            weight_decay=settings.weight_decay,
        ),
        max_steps=settings.max_steps,
        identity={
            **settings_identity(pretrain=settings.model_dump(mode="json", exclude=MAY_CHANGE)),
            **identity,
            "tokenizer": tokenizer.fingerprint(),
            "text": {name: stream.fingerprint() for name, stream in texts.train.items()},
        },
        compute=session.gpt_training_compute,
        lines=[
            f"training tokens: {sizes}; {len(train) * settings.window_tokens:,} per epoch",
            f"model: {settings.num_layers} layers of width {settings.width}, "
            f"{sum(p.numel() for p in model.parameters()):,} parameters, "
            f"initial weights: {settings.init_from or 'random'}; {how}",
        ],
        tokenizer=tokenizer,
        train=train,
        val=windows(texts.val, {}, settings.num_positions),
        average=StartAverage(model, settings.start_weight),
    )


def _initial_model(settings: PretrainSettings, tokenizer: SentenceTokenizer) -> tuple[GPT, dict[str, str]]:
    """Return the model before training, and the identity of its base."""
    if settings.init_from is None:
        return GPT(_config(settings, tokenizer.vocab_size)), {}
    model = load_gpt(resolve_base(settings.init_from, FLAG))
    return model, {"base": base_fingerprint(model)}


def _given_tokenizer(settings: PretrainSettings) -> SentenceTokenizer | None:
    """Return the tokenizer of the base or of `tokenizer`; None if one must be trained."""
    if settings.init_from is not None:
        return load_tokenizer(resolve_base(settings.init_from, FLAG))
    if settings.tokenizer is not None:
        return SentenceTokenizer.from_base(Path(settings.tokenizer).expanduser())
    return None


def _config(settings: PretrainSettings, vocab_size: int) -> GPTConfig:
    """Return the shape of a new model; the three matrices of SwiGLU have as many weights as GPT-2's two."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        **{name: getattr(settings, name) for name in SHAPE if name != "vocab_size"},
    }
    if settings.family != "gpt2":
        sizes |= {
            "num_kv_heads": settings.num_kv_heads or settings.num_heads,
            "head_width": settings.width // settings.num_heads,
            "mlp_width": -(-8 * settings.width // 24) * 8,  # 8/3 of the width, a multiple of 8
            "activation": "silu",
            "qkv_bias": settings.family == "qwen2",
            "qk_norm": settings.family == "qwen3",
        }
    return GPTConfig(**sizes)


def _read(session: Session) -> Texts:
    """Load or train the tokenizer, and encode and split all texts; tokenizer and tokens are cached."""
    settings = session.settings.pretrain
    files = {name: text_files(path) for name, path in settings.text.items()}
    given = _given_tokenizer(settings)
    tokenizer = _trained_tokenizer(session, files) if given is None else given
    train: dict[str, Stream] = {}
    val: dict[str, Stream] = {}
    for name, paths in files.items():
        session.reporter.say(f"reading {name}")
        stream = encode_text(paths, tokenizer, session.arrays)
        train[name], val[name] = split_val(stream, settings.val_fraction, seed=0)
        if not (len(train[name].starts) and len(val[name].starts)):
            raise ColakitError(
                f"pretrain.text.{name}: too little text for a training and a validation split",
                hint="Give text of several sentences that begin with a capital.",
            )
    return Texts(tokenizer, train, val)


def _trained_tokenizer(session: Session, files: dict[str, list[Path]]) -> SentenceTokenizer:
    """Train the tokenizer on all texts, each repeated `upsample` times, or load it from the cache."""
    settings = session.settings.pretrain
    weighted = [(paths, settings.upsample.get(name, 1)) for name, paths in files.items()]
    key = {
        "vocab_size": settings.vocab_size,
        "texts": [[*map(sha256_of, paths), repeats] for paths, repeats in weighted],
        "text_format": FORMAT,
    }

    def train() -> Arrays:
        session.reporter.say(f"training a tokenizer of {settings.vocab_size:,} tokens")
        repeated = chain.from_iterable(paths * repeats for paths, repeats in weighted)
        documents = chain.from_iterable(map(read_documents, repeated))
        return pack_lines([json.dumps(train_tokenizer(documents, settings.vocab_size).to_dict())])

    (tokenizer,) = unpack_lines(session.arrays.get("vocabulary", key, train))
    return SentenceTokenizer.from_dict(json.loads(tokenizer))
