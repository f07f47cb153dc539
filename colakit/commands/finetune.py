"""`colakit finetune`: LoRA on the base, for classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from colakit.commands.job import Job
from colakit.commands.runner import run_job
from colakit.commands.task import Task, examples
from colakit.context import Context, Resume
from colakit.data.corpora import Split
from colakit.data.holdout import left_out
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.classifier import SentenceClassifier
from colakit.engine.objectives import classification
from colakit.interop.gpt2 import base_fingerprint, load_gpt, plan_config, read_config, resolve_base
from colakit.models.empty import without_weights
from colakit.models.gpt import GPT, GPTClassifier, set_dropout
from colakit.models.lora import LoRAConfig, inject, train_also
from colakit.settings import LoRASettings, Settings


def run(context: Context, *, resume: Resume) -> dict[str, Any]:
    """Tune the base and report it."""
    return run_job(context, _build, _plan, resume=resume)


def _plan(context: Context, task: Task) -> GPTClassifier:
    settings = context.settings
    with without_weights():
        base = GPT(plan_config(settings.base))
        return _trainable(base, _adapter(settings), settings.lora, len(task.corpus.label_names))


def _build(context: Context, task: Task) -> tuple[Job, list[str]]:
    settings = context.settings
    folder = resolve_base(settings.base)
    base = GPT(read_config(folder)) if settings.finetune.from_scratch else load_gpt(folder)
    fingerprint = base_fingerprint(base)
    tokenizer = SentenceTokenizer.from_folder(
        folder, prefix=settings.finetune.add_bos, suffix=settings.finetune.add_eos
    )
    if settings.finetune.base_dropout is not None:
        set_dropout(base, settings.finetune.base_dropout)
    lora = _adapter(settings)
    longest = base.config.num_positions
    classifier = SentenceClassifier(
        model=_trainable(base, lora, settings.lora, len(task.corpus.label_names)),
        tokenizer=tokenizer,
        label_names=task.corpus.label_names,
        max_tokens=min(settings.data.max_tokens or longest, longest),
        lora=lora,
        origin=base_origin(context, fingerprint),
    )
    context.compute.place(classifier.model)
    train = _without_fold(task.train, settings.finetune.leave_out)
    job = Job(
        context=context,
        task=task,
        training=settings.finetune,
        classifier=classifier,
        train=examples(context, classifier, train),
        holdout=examples(context, classifier, task.holdout),
        dev={name: examples(context, classifier, split) for name, split in task.reports.items()},
        objective=classification,
        sections=("lora", "finetune") if lora else ("finetune",),
        identity={"base": fingerprint, "tokenizer": tokenizer.fingerprint(), **task.identity()},
        lr_ratio=settings.lora.lr_ratio if lora else 1.0,
        facts={"base": settings.base},
    )
    start = "random weights in the shape of " if settings.finetune.from_scratch else ""
    shape = f"{base.config.num_layers} layers of width {base.config.width}"
    return job, [f"base: {start}{settings.base} ({shape}), {settings.finetune.method}"]


def _without_fold(train: Split, fold: str | None) -> Split:
    return train if fold is None else train.take(np.flatnonzero(~left_out(train.sentences, fold)), train.name)


def base_origin(context: Context, fingerprint: str) -> dict[str, Any]:
    """Return where a model that was tuned from a base comes from, as plain data."""
    settings = context.settings
    return {
        "command": context.command,
        "seed": settings.seed,
        "base": str(Path(settings.base).resolve()) if Path(settings.base).is_dir() else settings.base,
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
    )


def _trainable(
    base: GPT, config: LoRAConfig | None, settings: LoRASettings, num_labels: int
) -> GPTClassifier:
    """Return a classifier on `base` of which an adapter trains, or all of it."""
    model = base.classifier(num_labels)
    if config is None:
        return model.requires_grad_(True)
    inject(model, config)
    train_also(model, layernorm=settings.train_layernorm, head=settings.train_head)
    return model
