"""The report of `finetune --folds K`, written after its runs."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.distillation.teachers import load_teacher, logits_of, unseen_by
from colakit.errors import ColakitError
from colakit.evaluation.comparison import experiment_key, fold_of
from colakit.evaluation.out_of_fold import FoldModel, combine_folds, fold_tables
from colakit.evaluation.tables import print_tables
from colakit.storage.folds import FoldsFolder
from colakit.training.task_data import TaskData


def report_folds(session: Session, task: TaskData, folds: FoldsFolder) -> dict[str, Any]:
    """Evaluate every sentence of train out of fold; write, print and return the summary.

    Raises:
        ColakitError: if a run left out another fold than its own.
    """
    train, labels = task.train, task.train.require_labels()
    models: list[FoldModel] = []
    experiment = ""
    for number in folds.numbers():
        run, fold = folds.run(number), folds.leaves_out(number)
        teacher = load_teacher(session, task, str(run.path))
        origin = teacher.classifier.origin
        if (left_out := fold_of(origin)) != fold:
            raise ColakitError(
                f"{run.path}: the model left out {f'fold {left_out}' if left_out else 'no fold'}, not {fold}",
                hint=f"Remove this folder to train it again. {folds.how_to_continue()}",
            )
        experiment = experiment_key(origin)
        logits = logits_of(session, teacher, train)  # of all sentences, as `distill` will need them
        predictions = teacher.classifier.predict_labels(logits)
        unseen = unseen_by(teacher, train)
        models.append(FoldModel(run.path.name, fold, run.read_summary(), unseen, logits, predictions))
    results, predictions = combine_folds(labels, models)
    summary = {
        "command": session.command,
        "folds": folds.count,
        "experiment": experiment,
        "seed": session.settings.seed,
        "labels": list(task.corpus.label_names),
        **results,
    }
    folds.shared.write_predictions({"out_of_fold": (labels, predictions)})
    folds.shared.write_summary(summary)
    print_tables(fold_tables(summary), session.reporter)
    if summary["out_of_fold"]["collapsed"]:
        session.reporter.warn("all models predict the same class for every sentence that they left out")
    session.reporter.result(f"{folds.path}: {folds.count} runs, for `colakit distill --teacher`")
    return summary
