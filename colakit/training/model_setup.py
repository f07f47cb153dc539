"""Models to fine-tune: the base with an adapter, or with all weights trainable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from torch import nn

from colakit.config.finetune import FinetuneSettings, LoRASettings
from colakit.data.batches import Examples
from colakit.data.corpora import Split
from colakit.data.splits import left_out
from colakit.inference.classifier import warn_truncated
from colakit.models.gpt.model import GPT, set_dropout
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.runtime.device import Compute
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, read_config, resolve_base
from colakit.training.epochs import steps_per_epoch
from colakit.training.job import JobOptions, settings_identity
from colakit.training.lm_trainer import SentenceLMJob
from colakit.training.objectives import language_modelling
from colakit.training.optimizers import tuning_optimizer
from colakit.training.task_data import TaskData
from colakit.utils.console import Reporter

Model = TypeVar("Model", bound=nn.Module)


def load_base(base: str, settings: FinetuneSettings) -> GPT:
    """Return the base to fine-tune, with random weights if `from_scratch`."""
    folder = resolve_base(base)
    model = GPT(read_config(folder)) if settings.from_scratch else load_gpt(folder)
    if settings.base_dropout is not None:
        set_dropout(model, settings.base_dropout)
    return model


def lora_config(settings: LoRASettings, rank: int | None = None) -> LoRAConfig:
    """Return the LoRA configuration of the settings; `rank` overrides theirs."""
    return LoRAConfig(
        rank=rank or settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        target_modules=settings.target_modules,
        rslora=settings.rslora,
        dora=settings.dora,
        init=settings.init,
        rank_pattern=settings.rank_pattern,
        alpha_pattern=settings.alpha_pattern,
        layers_to_transform=settings.layers_to_transform,
    )


def make_trainable(model: Model, settings: FinetuneSettings, lora: LoRASettings) -> Model:
    """Return `model` with a trainable adapter, or with all parameters trainable (`method: full`)."""
    if settings.method == "full":
        return model.requires_grad_(True)
    inject(model, lora_config(lora))
    train_modules(model, lora.modules_to_save, layers=lora.layers_to_transform)
    return model


def lora_plus_ratio(settings: FinetuneSettings, lora: LoRASettings) -> float:
    """Return LoRA+'s ratio of the learning rates of B and A; 1 without an adapter."""
    return lora.loraplus_lr_ratio if settings.method == "lora" else 1.0


def without_fold(train: Split, fold: str | None) -> Split:
    """Return train without the sentences of a fold `i/k`."""
    return train if fold is None else train.take(np.flatnonzero(~left_out(train.sentences, fold)), train.name)


def base_origin(
    command: str, seed: int, base: str, settings: Mapping[str, Any], data: Mapping[str, str]
) -> dict[str, Any]:
    """Return the origin of a model that was tuned from a base, as plain data.

    Args:
        base: its fingerprint.
        settings: all settings, without folders of this machine.
        data: split name -> fingerprint.
    """
    return {
        "command": command,
        "seed": seed,
        "base": settings["base"],
        "base_fingerprint": base,
        "data": dict(data),
        "settings": dict(settings),
    }


def sentence_lm_job(
    task: TaskData,
    base: str,
    settings: FinetuneSettings,
    lora: LoRASettings,
    *,
    options: JobOptions,
    max_tokens: int | None,
    start_token: str | None,
    compute: Compute,
    reporter: Reporter,
) -> SentenceLMJob:
    """Return the job that fine-tunes the base as a language model of train's sentences.

    Args:
        max_tokens: longest sentence; None is the number of positions of the base.
        start_token: the setting; None is the base's own.
    """
    seed_everything(options["seed"])
    model = load_base(base, settings)
    tokenizer = load_tokenizer(resolve_base(base), prefix=True, suffix=True, start=start_token)
    fingerprint, positions = base_fingerprint(model), model.config.num_positions
    make_trainable(model, settings, lora)
    longest = min(max_tokens or positions, positions)

    def examples(split: Split) -> Examples:
        tokens = tokenizer.encode(split.sentences, longest)
        warn_truncated(tokens, split, longest, reporter)
        return Examples(tokens, split.require_labels())

    train, val = examples(without_fold(task.train, settings.leave_out)), examples(task.val)
    compute.place(model)
    optimizer = tuning_optimizer(
        model,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        loraplus_lr_ratio=lora_plus_ratio(settings, lora),
    )
    return SentenceLMJob(
        **options,
        settings=settings,
        model=model,
        objective=language_modelling,
        optimizer=optimizer,
        max_steps=settings.epochs * steps_per_epoch(train, settings.batch_size),
        identity={
            **sentence_lm_identity(settings, lora),
            "base": fingerprint,
            "tokenizer": tokenizer.fingerprint(),
            "max_tokens": longest,
            **task.identity(),
        },
        compute=compute,
        lines=[f"base: {base}, as a language model of {len(train):,} sentences, {settings.method}"],
        base=base,
        tokenizer=tokenizer,
        train=train,
        val=val,
    )


def sentence_lm_identity(settings: FinetuneSettings, lora: LoRASettings) -> dict[str, Any]:
    """Return the settings that determine the weights of a sentence language model."""
    finetune = settings.model_dump(mode="json", exclude={"log_every", "save_every_steps"})
    return settings_identity(lora=lora.model_dump(mode="json"), finetune=finetune)
