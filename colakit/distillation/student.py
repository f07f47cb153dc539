"""The recurrent student, built the same way for `distill` and for its control `train-scratch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.config.student import StudentSettings, StudentTrainingSettings
from colakit.data.corpora import Split
from colakit.data.tokenizer import SentenceTokenizer
from colakit.distillation.initial_weights import (
    choose_vocabulary,
    copy_embeddings,
    copy_weights,
    load_start,
)
from colakit.distillation.teachers import TeacherTargets
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier
from colakit.models.meta_device import without_weights
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.distillation_heads import StudentWithHeads
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, resolve_base
from colakit.training.classifier_trainer import MAY_CHANGE, ClassifierJob
from colakit.training.job import JobOptions, settings_identity
from colakit.training.objectives import Objective
from colakit.training.optimizers import tuning_optimizer
from colakit.training.task_data import TaskData, labelled_examples
from colakit.utils.array_cache import ArrayCache, key_digest
from colakit.utils.console import Reporter


@dataclass(frozen=True)
class StudentTokens:
    """Tokens that a student reads.

    Attributes:
        tokenizer: of a base; a student reads without boundary tokens.
        max_tokens: most tokens that the base reads.
        embeddings: returns the (V, D) token embeddings of the base.
        base_fingerprint: of `student.base`, or of the base of `train-scratch`; None for a teacher's tokens.
    """

    tokenizer: SentenceTokenizer
    max_tokens: int
    embeddings: Callable[[], NDArray[np.float32]]
    base_fingerprint: str | None = None


def base_tokens(name: str, flag: str) -> StudentTokens:
    """Return the tokens of a base.

    Args:
        flag: command-line flag to name in errors.
    """
    folder = resolve_base(name, flag)
    base = load_gpt(folder)
    return StudentTokens(
        load_tokenizer(folder),
        base.config.num_positions,
        lambda: base.body.embedding.weight.detach().float().numpy(),
        base_fingerprint(base),
    )


def student_start(
    settings: StudentSettings, tokens: StudentTokens, num_labels: int
) -> SentenceClassifier | None:
    """Return the student at `settings.init_from`, if it is set.

    Raises:
        ColakitError: if its weights do not fit a student of these settings.
    """
    if settings.init_from is None:
        return None
    config = _config(settings, num_labels, tokens.tokenizer.vocab_size)
    return load_start(settings.init_from, config, tokens.tokenizer)


def empty_student(settings: StudentSettings, task: TaskData, vocab_size: int) -> DistilRNN:
    """Return a student without weights, for a dry run."""
    with without_weights():
        return DistilRNN(_config(settings, len(task.corpus.label_names), vocab_size))


def _config(settings: StudentSettings, num_labels: int, vocab_size: int) -> RNNConfig:
    shape = settings.model_dump(exclude={"base", "init_from", "vocabulary", "embeddings"})
    kept = settings.vocabulary
    rows = None if kept is None or kept >= vocab_size else kept + 1  # row 0 is shared by all other tokens
    return RNNConfig(vocab_size, num_labels, num_embeddings=rows, **shape)


def student_job(
    task: TaskData,
    train: Split,
    student: StudentSettings,
    training: StudentTrainingSettings,
    *,
    tokens: StudentTokens,
    start: SentenceClassifier | None,
    data_max_tokens: int | None,
    objective: Objective,
    train_loss: str,
    settings_dump: Mapping[str, Any],
    compute: Compute,
    arrays: ArrayCache,
    reporter: Reporter,
    options: JobOptions,
    targets: TeacherTargets | None = None,
    identity: Mapping[str, Any] | None = None,
    lines: list[str] | None = None,
    summary: Mapping[str, Any] | None = None,
    epoch_size: int | None = None,
) -> ClassifierJob:
    """Return the job that trains a student on `train`, with the label `UNLABELLED` for unlabelled sentences.

    Args:
        tokens: of the teacher or a base.
        start: as returned by `student_start`.
        data_max_tokens: limit of the settings, if any.
        train_loss: name of the objective, without the loss of neighbouring tokens.
        settings_dump: all settings as plain data without folders of this machine, stored in the model.
        targets: the teachers' outputs on `train`.
        identity: further plain data that must be equal when the run is resumed.
        epoch_size: sentences in an epoch, from which the number of steps follows; None for those of `train`.
    """
    predicts_tokens = bool(training.lm_weight or training.lm_weight_end)
    if predicts_tokens and student.cell == "bag":
        raise ColakitError(
            "student_training.lm_weight with student.cell=bag: a bag reads no neighbouring tokens",
            hint="Set student_training.lm_weight to 0, or choose a recurrent cell.",
        )
    start_fingerprint = None if start is None else start.fingerprint()
    classifier = _classifier(task, student, tokens, data_max_tokens)
    facts = {
        **(summary or {}),
        "student_fingerprint": _shape_fingerprint(classifier, student, start_fingerprint),
        "train_fingerprint": task.train.fingerprint(),
        "base_fingerprint": tokens.base_fingerprint,
        "start_fingerprint": start_fingerprint,
    }
    classifier.origin = _origin(task, options, settings_dump, facts)
    logits, hidden = (targets.logits, targets.hidden) if targets is not None else (None, None)
    examples = labelled_examples(classifier, train, arrays, reporter, logits, hidden)
    model = classifier.model
    assert isinstance(model, DistilRNN)
    if start is not None:
        copy_weights(start, classifier)
    else:
        kept = choose_vocabulary(model, examples.tokens)
        if student.embeddings == "base":
            copy_embeddings(model, tokens.embeddings(), kept)
    model.train_rows(torch.from_numpy(examples.tokens.ids.astype(np.int64)))
    with_heads = StudentWithHeads(
        model,
        teacher_width=None if hidden is None else hidden.shape[1],
        predicts_tokens=predicts_tokens,
    )
    compute.place(with_heads)
    val, *dev = (
        labelled_examples(classifier, split, arrays, reporter) for split in (task.val, *task.reports.values())
    )
    max_steps = training.max_steps or training.epochs * -(-(epoch_size or len(train)) // training.batch_size)
    return ClassifierJob(
        **options,
        settings=training,
        model=with_heads,
        objective=objective,
        optimizer=tuning_optimizer(
            with_heads, lr=training.lr, weight_decay=training.weight_decay, loraplus_lr_ratio=1.0
        ),
        max_steps=max_steps,
        identity={
            **settings_identity(
                student=student.model_dump(mode="json", exclude={"base", "init_from"}),
                student_training=training.model_dump(mode="json", exclude=MAY_CHANGE),
            ),
            "max_tokens": classifier.max_tokens,
            "max_steps": max_steps,
            "tokenizer": classifier.tokenizer.fingerprint(),
            "student_base": tokens.base_fingerprint,
            "start": start_fingerprint,
            **task.identity(),
            "learnt": train.fingerprint(),
            **(identity or {}),
        },
        compute=compute,
        lines=[*(lines or []), _describe(model)],
        summary=facts,
        classifier=classifier,
        train=examples,
        val=val,
        dev=dict(zip(task.reports, dev, strict=True)),
        splits={"val": task.val, **task.reports},
        train_loss=f"{train_loss} + neighbouring tokens" if predicts_tokens else train_loss,
    )


def _classifier(
    task: TaskData, student: StudentSettings, tokens: StudentTokens, data_max_tokens: int | None
) -> SentenceClassifier:
    """Return a student with random weights and without an origin; it reads no boundary tokens."""
    return SentenceClassifier(
        model=DistilRNN(_config(student, len(task.corpus.label_names), tokens.tokenizer.vocab_size)),
        tokenizer=SentenceTokenizer(tokens.tokenizer.backend, tokens.tokenizer.end_of_text_id),
        label_names=task.corpus.label_names,
        max_tokens=min(data_max_tokens or tokens.max_tokens, tokens.max_tokens),
    )


def _shape_fingerprint(
    classifier: SentenceClassifier, student: StudentSettings, start_fingerprint: str | None
) -> str:
    """Return a fingerprint of all that determines a student before it is trained, but the seed."""
    embeddings = student.embeddings if start_fingerprint is None else None
    tokens = [classifier.tokenizer.fingerprint(), classifier.max_tokens]
    beginning = {} if start_fingerprint is None else {"start": start_fingerprint}
    return key_digest({"student": [asdict(classifier.model.config), embeddings, *tokens], **beginning})


def _origin(
    task: TaskData, options: JobOptions, settings_dump: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the origin of a student; of its teachers, without paths of this machine."""
    teachers = [{k: v for k, v in row.items() if k != "path"} for row in facts.get("teachers", [])]
    return {
        "command": options["command"],
        "seed": options["seed"],
        "settings": dict(settings_dump),
        "data": task.corpus.fingerprints(),
        **facts,
        **({"teachers": teachers} if teachers else {}),
    }


def _describe(model: DistilRNN) -> str:
    config = model.config
    shape = f"{'bidirectional ' if config.bidirectional else ''}{config.cell}, hidden {config.hidden_size}"
    if config.cell == "bag":
        shape = f"bag of embeddings, width {config.width}"
    tokens = f"{config.vocab_size:,} tokens in {model.embedding.num_embeddings:,} embeddings"
    return f"student: {shape}, {config.pooling} pooling, {tokens}"
