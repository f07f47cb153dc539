"""`finetune`: LoRA on the base, or all weights; as a classifier or as a language model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from colakit.api.cross_validation import cross_validate
from colakit.api.run_set import chosen_runs
from colakit.api.seeds import plan_seeds, train_seeds
from colakit.api.session import Session
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.model import GPT, GPTClassifier
from colakit.models.meta_device import without_weights
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import base_fingerprint, load_tokenizer, plan_config, resolve_base
from colakit.storage.output import Resume
from colakit.training.classifier_trainer import MAY_CHANGE, ClassifierJob, ClassifierTrainer
from colakit.training.epochs import steps_per_epoch
from colakit.training.job import settings_identity
from colakit.training.lm_trainer import SentenceLMTrainer
from colakit.training.model_setup import (
    base_origin,
    load_base,
    lora_config,
    lora_plus_ratio,
    make_trainable,
    sentence_lm_job,
    without_fold,
)
from colakit.training.objectives import classification
from colakit.training.optimizers import tuning_optimizer
from colakit.training.run import TrainingRun
from colakit.training.task_data import TaskData, labelled_examples

CLASSIFIER_ONLY = (
    *("evaluate_every_steps", "evaluate_every_epochs", "patience", "ema_decay", "metric_for_best_model"),
    *("threshold", "track_dev", "add_bos", "add_eos", "frozen_cache_mib"),
)
"""Settings of `finetune` without effect on a language model: it is evaluated by its loss after each epoch.
Its sentences are always between two end-of-text tokens."""


def finetune(
    session: Session,
    *,
    resume: Resume = Resume.NEVER,
    num_folds: int | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Fine-tune the base, write the run folder and return the summary (or the plan of a dry run).

    Args:
        num_folds: train this many models, each without one fold of train.
        seeds: train one model for each seed. A resumed command reads folds and seeds from its folder.
    """
    runs = chosen_runs(session, resume, folds=num_folds, seeds=seeds)
    objective = session.settings.finetune.objective
    if runs is not None and objective != "classification":
        raise ColakitError(
            f"--{runs[0]} with finetune.objective={objective}: {runs[0]} are for classification",
            hint=f"Remove --{runs[0]}.",
        )
    if runs is not None and runs[0] == "folds":
        return cross_validate(session, len(runs[1]), build_model, _trainer, resume=resume)
    seeds = None if runs is None else runs[1]
    if seeds is not None and not session.dry_run:
        return train_seeds(
            session, seeds, resume=resume, check=lambda: build_model(session, session.load_task())
        )
    if objective != "classification":
        _refuse_classifier_settings(session)
    if session.dry_run:
        task = session.load_task()
        model, measure = build_model(session, task), session.measurable_stages(task, _trainer)
        return plan_seeds(session, seeds, lambda: session.plan(task, model, measure))
    with session.training_run(resume) as run:
        if run.has_finished_with(session.settings_yaml):
            return run.finished_summary()
        return _trainer(session, session.load_task(), run).train()


def _trainer(session: Session, task: TaskData, run: TrainingRun) -> ClassifierTrainer | SentenceLMTrainer:
    settings = session.settings
    if settings.finetune.objective == "classification":
        return ClassifierTrainer(classifier_job(session, task), run)
    job = sentence_lm_job(
        task,
        settings.base,
        settings.finetune,
        settings.lora,
        max_tokens=settings.data.max_tokens,
        start_token=settings.start_token,
        compute=session.gpt_training_compute,
        reporter=session.reporter,
        options=session.job_options(),
    )
    return SentenceLMTrainer(job, run)


def build_model(session: Session, task: TaskData, base: GPT | None = None) -> GPT | GPTClassifier:
    """Return the model to train, with its trainable parameters chosen; without weights if `base` is None."""
    settings = session.settings
    with without_weights() if base is None else nullcontext():
        model: GPT | GPTClassifier = base or GPT(plan_config(settings.base))
        if settings.finetune.objective == "classification":
            assert isinstance(model, GPT)
            model = model.classifier(len(task.corpus.label_names))
        return make_trainable(model, settings.finetune, settings.lora)


def classifier_job(session: Session, task: TaskData) -> ClassifierJob:
    """Load the base, add a head and an adapter, tokenise the data, and return the job."""
    settings, tuning = session.settings, session.settings.finetune
    seed_everything(settings.seed)
    base = load_base(settings.base, tuning)
    tokenizer = load_tokenizer(
        resolve_base(settings.base),
        prefix=tuning.add_bos,
        suffix=tuning.add_eos,
        start=settings.start_token,
    )
    fingerprint = base_fingerprint(base)
    model = build_model(session, task, base)
    assert isinstance(model, GPTClassifier)
    classifier = SentenceClassifier(
        model=model,
        tokenizer=tokenizer,
        label_names=task.corpus.label_names,
        max_tokens=min(settings.data.max_tokens or base.config.num_positions, base.config.num_positions),
        lora=lora_config(settings.lora) if tuning.method == "lora" else None,
        origin=base_origin(
            session.command,
            settings.seed,
            fingerprint,
            session.portable_settings(),
            task.corpus.fingerprints(),
        ),
    )
    session.compute.place(model)
    train, val, *dev = (
        labelled_examples(classifier, split, session.arrays, session.reporter)
        for split in (without_fold(task.train, tuning.leave_out), task.val, *task.reports.values())
    )
    sections = {"lora": settings.lora} if classifier.lora else {}
    start = "random weights in the shape of " if tuning.from_scratch else ""
    shape = f"{base.config.num_layers} layers of width {base.config.width}"
    return ClassifierJob(
        **session.job_options(),
        settings=tuning,
        model=model,
        objective=classification,
        optimizer=tuning_optimizer(
            model,
            lr=tuning.lr,
            weight_decay=tuning.weight_decay,
            loraplus_lr_ratio=lora_plus_ratio(tuning, settings.lora),
        ),
        max_steps=tuning.epochs * steps_per_epoch(train, tuning.batch_size),
        identity={
            **settings_identity(
                finetune=tuning.model_dump(mode="json", exclude=MAY_CHANGE),
                **{name: section.model_dump(mode="json") for name, section in sections.items()},
            ),
            "max_tokens": classifier.max_tokens,
            "base": fingerprint,
            "tokenizer": tokenizer.fingerprint(),
            **task.identity(),
        },
        compute=session.gpt_training_compute.with_graphs(settings.cuda_graphs),
        graph_width=base.config.num_positions,
        lines=[f"base: {start}{settings.base} ({shape}), {tuning.method}"],
        summary={
            "base": classifier.origin["base"],
            **({"leave_out": tuning.leave_out} if tuning.leave_out else {}),
        },
        classifier=classifier,
        train=train,
        val=val,
        dev=dict(zip(task.reports, dev, strict=True)),
        splits={"val": task.val, **task.reports},
        frozen_cache_mib=tuning.frozen_cache_mib,
    )


def _refuse_classifier_settings(session: Session) -> None:
    """Raise `ColakitError` for typed settings without effect; those of a file may serve other commands."""
    for name in CLASSIFIER_ONLY:
        if session.resolved.was_typed(f"finetune.{name}"):
            raise ColakitError(
                f"finetune.{name} has no effect with --objective language-modelling", hint="Leave it out."
            )
