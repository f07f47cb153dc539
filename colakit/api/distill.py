"""`distill`: a recurrent student learns the outputs of its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from colakit.api.recorded_data import recorded_data
from colakit.api.run_set import chosen_runs
from colakit.api.seeds import plan_seeds, teachers_by_seed, train_seeds
from colakit.api.session import Session
from colakit.config.student import DistillSettings, StudentSettings
from colakit.data.batches import UNLABELLED
from colakit.data.corpora import Split, join_splits
from colakit.distillation.initial_weights import STUDENT_BASE
from colakit.distillation.student import (
    StudentTokens,
    base_tokens,
    empty_student,
    student_job,
    student_start,
)
from colakit.distillation.teachers import (
    Teacher,
    TeacherTargets,
    load_teachers,
    mean_logits,
    require_above_chance,
    rows_to_label,
    train_logits,
    unseen_rows,
)
from colakit.distillation.transfer_set import (
    cached_transfer_set,
    make_transfer_set,
    measure_transfer_set,
    transfer_size,
)
from colakit.distillation.tuned_sampler import TUNING, TunedSampler
from colakit.errors import ColakitError
from colakit.evaluation.metrics import Metrics, measure
from colakit.evaluation.tables import percent
from colakit.inference.classifier import SentenceClassifier, read_origin
from colakit.models.gpt.model import GPTClassifier
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.seeding import seed_everything
from colakit.storage.gpt2 import local_base, plan_config
from colakit.storage.output import Resume
from colakit.storage.run_set import expand_runs
from colakit.training.classifier_trainer import ClassifierJob, ClassifierTrainer
from colakit.training.job import settings_identity
from colakit.training.objectives import CROSS_ENTROPY, distillation, line
from colakit.training.run import TrainingRun, is_resuming
from colakit.training.task_data import TaskData
from colakit.utils.array_cache import ArrayCache
from colakit.utils.plan import Plan, Stage

MAKING, LABELLING = "making sentences", "labelling with teachers"


def distill(
    session: Session, *, resume: Resume = Resume.NEVER, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Train a student on its teachers' outputs, write the run folder and return the summary (or the plan).

    If the settings name no data, the data that the teachers were trained on is used. The base of the first
    teacher is recorded in the settings.

    Args:
        seeds: train one student for each seed; a teacher folder of seeds gives each the teacher of its seed.
    """
    runs = chosen_runs(session, resume, seeds=seeds)
    seeds = None if runs is None else runs[1]
    if seeds is None and not session.dry_run:
        is_resuming(session.out, resume)  # raises if there is no run to resume
    record_data_and_base(session)
    if session.dry_run:
        return plan_seeds(session, seeds, lambda: _dry_run(session, seeds))
    if seeds is None:
        with session.training_run(resume) as run:
            if run.has_finished_with(session.settings_yaml):
                return run.finished_summary()
            return ClassifierTrainer(_job(session, _load_task(session), run), run).train()
    teachers = teachers_by_seed(session.settings.distill.teacher, seeds)
    base_words = [] if (base := _typed_base(session)) is None else ["--base", base]

    def words(seed: int) -> list[str]:
        return [*(word for path in teachers[seed] for word in ("--teacher", path)), *base_words]

    return train_seeds(
        session,
        seeds,
        resume=resume,
        check=lambda: _check(session),
        words=words,
    )


def record_data_and_base(session: Session) -> None:
    """Set the data and the base of the settings to those of the teachers, unless they are given.

    Raises:
        ColakitError: if no teacher is named.
    """
    if not session.settings.distill.teacher:
        raise ColakitError(
            "distill.teacher is not set", hint="Name a ckpt.pt, run folder or adapter folder: --teacher PATH"
        )
    origins = {path: read_origin(path) for path in expand_runs(session.settings.distill.teacher)}
    changes: dict[str, Any] = {}
    if (data := recorded_data(session, origins)) is not None:
        changes["data"] = data
    base = next((origin.get("base") for origin in origins.values()), None)
    if base and _typed_base(session) is None:
        changes["base"] = base
    settings = session.settings.model_copy(update=changes)
    session.resolved = replace(session.resolved, settings=settings)


def _dry_run(session: Session, seeds: Sequence[int] | None) -> dict[str, Any]:
    """Print the plan of a run, with seeds that of the first, and return it as plain data."""
    settings, task = session.settings, _load_task(session)
    teachers = _load_teachers(session, task)
    if seeds is not None:
        own = expand_runs(teachers_by_seed(settings.distill.teacher, seeds)[seeds[0]])
        teachers = [teacher for teacher in teachers if teacher.path in own]
    first, sampler = teachers[0], None
    local = session.with_local_base(of_student=True)
    if local is None:
        return session.plan(task, _empty_student(session, task, first), None)
    if settings.transfer.needs_sampler:
        base = settings.transfer.language_model or first.base(_typed_base(session))  # raises if there is none
        if (folder := local_base(base)) is None:
            return session.plan(task, _empty_student(session, task, first), None)
        sampler = tuned_sampler(session, task, str(folder))
    stages = partial(distillation_stages, local, task, teachers, sampler)
    return session.plan(task, _empty_student(session, task, first), stages)


def _load_task(session: Session) -> TaskData:
    base = session.settings.student.base  # that of the teachers is loaded before the data are needed
    return session.load_task(bases={} if base is None else {STUDENT_BASE: base})


def _check(session: Session) -> None:
    """Raise `ColakitError` if a teacher, the student's base or its start cannot be used."""
    task = _load_task(session)
    _tokens_and_start(session.settings.student, task, _load_teachers(session, task))


def _tokens_and_start(
    settings: StudentSettings, task: TaskData, teachers: list[Teacher]
) -> tuple[StudentTokens, SentenceClassifier | None]:
    """Return the tokens that the student reads, and the student whose weights it starts with, if any."""
    teacher = teachers[0].classifier
    if settings.base is not None:
        tokens = base_tokens(settings.base, STUDENT_BASE)
    else:
        max_tokens = teacher.max_tokens or np.iinfo(np.int32).max
        tokens = StudentTokens(teacher.tokenizer, max_tokens, lambda: _token_embeddings(teacher.model))
    return tokens, student_start(settings, tokens, len(task.corpus.label_names))


def _empty_student(session: Session, task: TaskData, teacher: Teacher) -> DistilRNN:
    base = session.settings.student.base
    own = None if base is None else plan_config(base, STUDENT_BASE).vocab_size
    vocab_size = own or teacher.classifier.tokenizer.vocab_size
    return empty_student(session.settings.student, task, vocab_size)


def distillation_stages(
    session: Session, task: TaskData, teachers: list[Teacher], sampler: TunedSampler | None
) -> list[Stage]:
    """Return the stages of a distillation with their estimated seconds."""
    settings = session.settings.transfer
    size = transfer_size(settings, len(task.train))
    transfer, stages = cached_transfer_set(task, settings, session.arrays, sampler), []
    if size:
        if sampler is not None:
            stages += sampler.plan_tuning() if transfer is None else [Stage(TUNING, estimate=0.0)]
        seconds = measure_transfer_set(task, settings, sampler) if transfer is None else 0.0
        stages.append(Stage(MAKING, sentences=size, estimate=seconds))
    labelled, missing = [task.val, *([] if transfer is None else [transfer])], 0
    unseen = unseen_rows(teachers, task.train)
    for index, (teacher, rows) in enumerate(zip(teachers, rows_to_label(unseen), strict=True)):
        hidden = session.settings.distill.hidden_weight > 0 and index == 0
        missing += teacher.num_missing(task.train.take(np.flatnonzero(rows), task.train.name))
        missing += sum(teacher.num_missing(split) for split in labelled)
        if hidden:
            missing += sum(map(teacher.num_missing_hidden, (task.train, *labelled[1:])))
        missing += size * (1 + hidden) if transfer is None else 0
    seconds = missing * teachers[0].seconds_per_sentence(task.train) if missing else 0.0
    stages.append(Stage(LABELLING, sentences=missing, estimate=seconds))
    if transfer is None:  # train, repeated, takes its place in the measurement
        transfer = Split("transfer", tuple(islice(cycle(task.train.sentences), size)))
    arrays = ArrayCache(session.cache_folder, read_only=True)
    targets = {
        split.name: _blank_targets(session, task, teachers[0], split) for split in (task.train, transfer)
    }
    beginning = _tokens_and_start(session.settings.student, task, teachers)
    job = _student_job(
        *(session, task, teachers, transfer, targets),
        beginning=beginning,
        arrays=arrays,
        lines=[],
        summary={},
    )
    return [*stages, *session.trainer_stages(lambda run: ClassifierTrainer(job, run))]


def _blank_targets(session: Session, task: TaskData, teacher: Teacher, split: Split) -> TeacherTargets:
    logits = np.zeros((len(split), len(task.corpus.label_names)), dtype=np.float32)
    if not session.settings.distill.hidden_weight:
        return TeacherTargets(logits)
    width = teacher.hidden_width
    return TeacherTargets(logits, np.zeros((len(split), width), dtype=np.float16))


def _typed_base(session: Session) -> str | None:
    return session.settings.base if session.resolved.was_typed("base") else None


def _load_teachers(session: Session, task: TaskData) -> list[Teacher]:
    return load_teachers(
        session.settings.distill.teacher,
        task.corpus.label_names,
        base=_typed_base(session),
        compute=session.compute,
        arrays=session.arrays,
        reporter=session.reporter,
        hidden_weight=session.settings.distill.hidden_weight,
        share_tokenizer=session.settings.student.base is None,
    )


def _job(session: Session, task: TaskData, run: TrainingRun) -> ClassifierJob:
    """Make the transfer set, let the teachers label it, and return the job of the student."""
    settings, reporter = session.settings, session.reporter
    teachers = _load_teachers(session, task)
    beginning = _tokens_and_start(settings.student, task, teachers)  # refused before any work
    sampler = None
    if settings.transfer.needs_sampler:
        base = settings.transfer.language_model or teachers[0].untuned_base(_typed_base(session))
        sampler = tuned_sampler(session, task, base)
    needs_plan = not (reporter.quiet or run.is_finished)
    run.plan = Plan(distillation_stages(session, task, teachers, sampler) if needs_plan else [], reporter)
    run.plan.show(reporter.say)
    if sampler is not None and cached_transfer_set(task, settings.transfer, session.arrays, sampler) is None:
        with run.plan.stage(TUNING):
            sampler.folder()
    with run.plan.stage(MAKING):
        transfer = make_transfer_set(task, settings.transfer, session.arrays, reporter, sampler)
    with run.plan.stage(LABELLING):
        logits, num_out_of_fold = train_logits(teachers, task.train)
        metrics = _val_metrics(session, teachers, task)
        targets = {"train": TeacherTargets(logits)}
        if len(transfer):
            targets["transfer"] = TeacherTargets(mean_logits(teachers, transfer))
        if settings.distill.hidden_weight:
            for split in (task.train, transfer)[: len(targets)]:
                hidden = teachers[0].hidden_states(split)
                targets[split.name] = TeacherTargets(targets[split.name].logits, hidden)
    return _student_job(
        session,
        task,
        teachers,
        transfer,
        targets,
        beginning=beginning,
        arrays=session.arrays,
        lines=_lines(teachers, metrics, transfer, num_out_of_fold),
        summary={
            "teachers": [teacher.summary() for teacher in teachers],
            "teachers_val": metrics.as_dict(),
            "transfer": {"sentences": len(transfer), "fingerprint": transfer.fingerprint()},
            "out_of_fold": num_out_of_fold,
        },
    )


def _student_job(
    session: Session,
    task: TaskData,
    teachers: list[Teacher],
    transfer: Split,
    targets: Mapping[str, TeacherTargets],
    *,
    beginning: tuple[StudentTokens, SentenceClassifier | None],
    arrays: ArrayCache,
    lines: list[str],
    summary: dict[str, Any],
) -> ClassifierJob:
    """Return the job that trains the student on the `targets` of train and of the transfer set, by name."""
    settings, training, kd = session.settings, session.settings.student_training, session.settings.distill
    parts = [task.train]
    if len(transfer):
        unlabelled = np.full(len(transfer), UNLABELLED, dtype=np.int64)
        parts = [*parts * kd.upsample, Split(transfer.name, transfer.sentences, unlabelled)]
    chosen = [targets[part.name] for part in parts]
    hidden = np.concatenate([each.hidden for each in chosen]) if kd.hidden_weight else None
    tokens, start = beginning
    seed_everything(settings.seed)  # the same initial weights as the control, whatever was drawn before
    return student_job(
        task,
        join_splits("train", parts),
        settings.student,
        training,
        tokens=tokens,
        start=start,
        data_max_tokens=settings.data.max_tokens,
        objective=distillation(
            kd_weight=line(kd.kd_weight, kd.kd_weight_end),
            temperature=line(kd.temperature, kd.temperature_end),
            soft_loss=kd.soft_loss,
            hidden_weight=kd.hidden_weight,
            lm_weight=line(training.lm_weight, training.lm_weight_end),
        ),
        train_loss=_train_loss(kd),
        targets=TeacherTargets(np.concatenate([each.logits for each in chosen]), hidden),
        identity={
            **settings_identity(distill=kd.model_dump(mode="json", exclude={"teacher"})),
            "teacher": [teacher.fingerprint for teacher in teachers],
        },
        lines=lines,
        summary=summary,
        settings_dump=session.portable_settings(),
        compute=session.compute,
        arrays=arrays,
        reporter=session.reporter,
        options=session.job_options(),
    )


def _train_loss(kd: DistillSettings) -> str:
    soft, end = {"kl": "KL", "mse": "MSE of logits"}[kd.soft_loss], kd.kd_weight_end
    if end is None or end == kd.kd_weight:
        mixture = f"{1 - kd.kd_weight:.3g}·{CROSS_ENTROPY} + {kd.kd_weight:.3g}·{soft}"
    else:
        mixture = f"(1-w)·{CROSS_ENTROPY} + w·{soft}, w from {kd.kd_weight:.3g} to {end:.3g}"
    return f"{mixture} + hidden states" if kd.hidden_weight else mixture


def tuned_sampler(session: Session, task: TaskData, base: str) -> TunedSampler:
    """Return the sampler for the settings; it is trained when it first samples, unless it is cached."""
    settings = session.settings
    return TunedSampler(
        task,
        base,
        settings.transfer,
        settings.finetune,
        settings.lora,
        settings.data.max_tokens,
        settings.start_token,
        session.compute,
        session.gpt_training_compute,
        settings.cpu_kernels,
        session.cache_folder,
        session.arrays,
        session.reporter,
    )


def _val_metrics(session: Session, teachers: list[Teacher], task: TaskData) -> Metrics:
    """Return the metrics of the mean of the teachers on val (argmax; a single teacher: its threshold)."""
    logits = mean_logits(teachers, task.val)
    single = teachers[0].classifier if len(teachers) == 1 else None
    labels = single.predict_labels(logits) if single is not None else logits.argmax(axis=1)
    metrics = measure(logits, task.val.require_labels(), labels)
    if not session.settings.distill.allow_teacher_below_chance:
        require_above_chance(metrics, [teacher.path for teacher in teachers])
    if metrics.collapsed:
        session.reporter.warn("the teacher predicts one class for all of val; it has little to teach")
    return metrics


def _lines(teachers: list[Teacher], metrics: Metrics, transfer: Split, num_out_of_fold: int) -> list[str]:
    lines = [
        f"teacher: {', '.join(teacher.path for teacher in teachers)}, val accuracy "
        f"{percent(metrics.accuracy)} % (majority {percent(metrics.majority_rate)} %), MCC {metrics.mcc:.3f}"
    ]
    if num_out_of_fold:
        lines.append(f"teacher logits out of fold: {num_out_of_fold:,} sentences of train")
    if len(transfer):
        lines.append(f"transfer set: {len(transfer):,} sentences")
    return lines


def _token_embeddings(model: GPTClassifier | DistilRNN) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the (V, D) token embeddings; those of a recurrent teacher may share rows."""
    if isinstance(model, GPTClassifier):
        weight = model.body.embedding.weight
    else:
        weight = model.embedding.weight[model.embedding_rows(torch.arange(model.config.vocab_size))]
    return weight.detach().float().cpu().numpy()
