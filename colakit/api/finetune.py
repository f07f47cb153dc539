"""`colakit finetune`: LoRA on the base, or all of it; for classification, or as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from colakit.api.session import Resume, Session
from colakit.config.settings import LoRASettings, Settings
from colakit.data.corpora import Split
from colakit.data.splits import left_out
from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.model import GPT, GPTClassifier, set_dropout
from colakit.models.lora import LoRAConfig, inject, train_also
from colakit.models.meta_device import without_weights
from colakit.runtime.seeding import seed_everything
from colakit.storage.folds import find_folds
from colakit.storage.gpt2 import base_fingerprint, load_gpt, plan_config, read_config, resolve_base
from colakit.training import cross_validation as folds
from colakit.training import sentence_lm as sentence_model
from colakit.training.job import Job
from colakit.training.objectives import classification
from colakit.training.run import Training, run_job, run_training
from colakit.training.task_data import TaskData, examples, load_task, show_plan


def run(session: Session, *, resume: Resume, num_folds: int | None = None) -> dict[str, Any]:
    """Tune the base and report it.

    Args:
        num_folds: tune so many instead, each without one fold of train; a resumed command knows its own.
    """
    if num_folds is None and resume is not Resume.NEVER and session.out is not None:
        begun = find_folds(session.out)
        num_folds = None if begun is None else begun.count
    if num_folds is not None:
        return folds.run(session, num_folds, _plan, resume=resume)
    if session.settings.finetune.objective == "classification":
        return run_job(session, _build, _plan, resume=resume)
    sentence_model.refuse_what_has_no_meaning(session)

    def plan() -> dict[str, Any]:
        with without_weights():
            model = _trainable(GPT(plan_config(session.settings.base)), session.settings, head=False)
        return show_plan(session, load_task(session), model)

    return run_training(session, lambda: language_model(session, load_task(session)), plan, resume=resume)


def _plan(session: Session, task: TaskData) -> GPTClassifier:
    with without_weights():
        base = GPT(plan_config(session.settings.base))
        return _trainable(base.classifier(len(task.corpus.label_names)), session.settings)


def _build(session: Session, task: TaskData) -> tuple[Job, list[str]]:
    settings = session.settings
    fold = settings.finetune.leave_out
    base, tokenizer, fingerprint = _load(settings)
    longest = base.config.num_positions
    lora = _adapter(settings)
    classifier = SentenceClassifier(
        model=_trainable(base.classifier(len(task.corpus.label_names)), settings),
        tokenizer=tokenizer,
        label_names=task.corpus.label_names,
        max_tokens=min(settings.data.max_tokens or longest, longest),
        lora=lora,
        origin=base_origin(session, fingerprint),
    )
    session.compute.place(classifier.model)
    job = Job(
        session=session,
        task=task,
        training=settings.finetune,
        classifier=classifier,
        train=examples(session, classifier, _without_fold(task.train, fold)),
        val=examples(session, classifier, task.val),
        dev={name: examples(session, classifier, split) for name, split in task.reports.items()},
        objective=classification,
        sections=("lora", "finetune") if lora else ("finetune",),
        identity={"base": fingerprint, "tokenizer": tokenizer.fingerprint(), **task.identity()},
        loraplus_lr_ratio=settings.lora.loraplus_lr_ratio if lora else 1.0,
        frozen_cache_mib=settings.finetune.frozen_cache_mib,
        facts={"base": settings.base, **({"leave_out": fold} if fold else {})},
    )
    start = "random weights in the shape of " if settings.finetune.from_scratch else ""
    shape = f"{base.config.num_layers} layers of width {base.config.width}"
    return job, [f"base: {start}{settings.base} ({shape}), {settings.finetune.method}"]


def language_model(session: Session, task: TaskData) -> Training:
    """Make the tuning of the base as a language model of train's sentences, whatever their labels."""
    settings = session.settings
    seed_everything(settings.seed)
    base, tokenizer, fingerprint = _load(settings)
    between = SentenceTokenizer(tokenizer.backend, tokenizer.end_of_text_id, prefix=True, suffix=True)
    train = _without_fold(task.train, settings.finetune.leave_out)
    return sentence_model.prepare(
        session, task, _trainable(base, settings, head=False), between, train, fingerprint
    )


def _load(settings: Settings) -> tuple[GPT, SentenceTokenizer, str]:
    """Return the base, its tokenizer with the boundary tokens that are asked for, and its fingerprint."""
    folder = resolve_base(settings.base)
    base = GPT(read_config(folder)) if settings.finetune.from_scratch else load_gpt(folder)
    if settings.finetune.base_dropout is not None:
        set_dropout(base, settings.finetune.base_dropout)
    tokenizer = SentenceTokenizer.from_folder(
        folder, prefix=settings.finetune.add_bos, suffix=settings.finetune.add_eos
    )
    return base, tokenizer, base_fingerprint(base)


def _without_fold(train: Split, fold: str | None) -> Split:
    return train if fold is None else train.take(np.flatnonzero(~left_out(train.sentences, fold)), train.name)


def base_origin(session: Session, fingerprint: str) -> dict[str, Any]:
    """Return where a model that was tuned from a base comes from, as plain data."""
    settings = session.settings
    folder = Path(settings.base).expanduser()
    return {
        "command": session.command,
        "seed": settings.seed,
        "base": str(folder.resolve()) if folder.is_dir() else settings.base,
        "base_fingerprint": fingerprint,
        "settings": settings.model_dump(mode="json"),
    }


def _adapter(settings: Settings) -> LoRAConfig | None:
    return lora_config(settings.lora) if settings.finetune.method == "lora" else None


def lora_config(settings: LoRASettings, rank: int | None = None) -> LoRAConfig:
    """Return the model's side of the LoRA settings; `rank` overrides theirs."""
    return LoRAConfig(
        rank=rank or settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        target_modules=settings.target_modules,
        rslora=settings.rslora,
        dora=settings.dora,
        init=settings.init,
        overrides={name: dict(changes) for name, changes in settings.overrides.items()},
        layers_to_transform=settings.layers_to_transform,
    )


Model = TypeVar("Model", bound=nn.Module)


def _trainable(model: Model, settings: Settings, *, head: bool = True) -> Model:
    """Return the model with an adapter that trains, or with all of it trainable.

    Args:
        head: whether it has one.
    """
    config = _adapter(settings)
    if config is None:
        return model.requires_grad_(True)
    inject(model, config)
    lora = settings.lora
    head = head and lora.train_head
    train_also(model, layernorm=lora.train_layernorm, head=head, layers=lora.layers_to_transform)
    return model
