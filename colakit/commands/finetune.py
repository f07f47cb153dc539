"""`colakit finetune`: LoRA on the base, or all of it; for classification, or as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from colakit.commands import folds, sentence_model
from colakit.commands.job import Job
from colakit.commands.runner import Training, run_job, run_training
from colakit.commands.task import Task, examples, load_task, show_plan
from colakit.context import Context, Resume
from colakit.data.corpora import Split
from colakit.data.holdout import left_out
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.classifier import SentenceClassifier
from colakit.engine.folds import find_folds
from colakit.engine.objectives import classification
from colakit.engine.randomness import seed_everything
from colakit.interop.gpt2 import base_fingerprint, load_gpt, plan_config, read_config, resolve_base
from colakit.models.empty import without_weights
from colakit.models.gpt import GPT, GPTClassifier, set_dropout
from colakit.models.lora import LoRAConfig, inject, train_also
from colakit.settings import LoRASettings, Settings


def run(context: Context, *, resume: Resume, num_folds: int | None = None) -> dict[str, Any]:
    """Tune the base and report it.

    Args:
        num_folds: tune so many instead, each without one fold of train; a resumed command knows its own.
    """
    if num_folds is None and resume is not Resume.NEVER and context.out is not None:
        begun = find_folds(context.out)
        num_folds = None if begun is None else begun.count
    if num_folds is not None:
        return folds.run(context, num_folds, _plan, resume=resume)
    if context.settings.finetune.objective == "classification":
        return run_job(context, _build, _plan, resume=resume)
    sentence_model.refuse_what_has_no_meaning(context)

    def plan() -> dict[str, Any]:
        with without_weights():
            model = _trainable(GPT(plan_config(context.settings.base)), context.settings, head=False)
        return show_plan(context, load_task(context), model)

    return run_training(context, lambda: language_model(context, load_task(context)), plan, resume=resume)


def _plan(context: Context, task: Task) -> GPTClassifier:
    with without_weights():
        base = GPT(plan_config(context.settings.base))
        return _trainable(base.classifier(len(task.corpus.label_names)), context.settings)


def _build(context: Context, task: Task) -> tuple[Job, list[str]]:
    settings = context.settings
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
        origin=base_origin(context, fingerprint),
    )
    context.compute.place(classifier.model)
    job = Job(
        context=context,
        task=task,
        training=settings.finetune,
        classifier=classifier,
        train=examples(context, classifier, _without_fold(task.train, fold)),
        holdout=examples(context, classifier, task.holdout),
        dev={name: examples(context, classifier, split) for name, split in task.reports.items()},
        objective=classification,
        sections=("lora", "finetune") if lora else ("finetune",),
        identity={"base": fingerprint, "tokenizer": tokenizer.fingerprint(), **task.identity()},
        lr_ratio=settings.lora.lr_ratio if lora else 1.0,
        states_mib=settings.finetune.states_mib,
        facts={"base": settings.base, **({"leave_out": fold} if fold else {})},
    )
    start = "random weights in the shape of " if settings.finetune.from_scratch else ""
    shape = f"{base.config.num_layers} layers of width {base.config.width}"
    return job, [f"base: {start}{settings.base} ({shape}), {settings.finetune.method}"]


def language_model(context: Context, task: Task) -> Training:
    """Make the tuning of the base as a language model of train's sentences, whatever their labels."""
    settings = context.settings
    seed_everything(settings.seed)
    base, tokenizer, fingerprint = _load(settings)
    between = SentenceTokenizer(tokenizer.backend, tokenizer.end_of_text_id, prefix=True, suffix=True)
    train = _without_fold(task.train, settings.finetune.leave_out)
    return sentence_model.prepare(
        context, task, _trainable(base, settings, head=False), between, train, fingerprint
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


def base_origin(context: Context, fingerprint: str) -> dict[str, Any]:
    """Return where a model that was tuned from a base comes from, as plain data."""
    settings = context.settings
    folder = Path(settings.base).expanduser()
    return {
        "command": context.command,
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
