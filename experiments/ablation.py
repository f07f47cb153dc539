"""What each part of distilling adds: every row of the table is one change, over several seeds.

    python experiments/ablation.py --config FILE --out DIR [--text FILE] [--seeds 0 1 2 3 4] [--rows NAME…]

It tunes a teacher on all of train and five more, each without a fifth of it, as far as the rows ask for them;
trains the students of every row; and prints the table, also written to DIR/ablation.md and DIR/ablation.json.
The row `distill` is the configuration itself; with `--text`, further rows draw sentences from that text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import Experiments, Row, arguments, chosen

CONTROL = "train-scratch"
TEACHER = "teachers/0"
FOLDS = {f"teachers/{fold}of5": f"{fold}/5" for fold in range(1, 6)}
TEACHERS = {"teacher": [TEACHER], "teachers without a fifth": list(FOLDS)}  # rows of the table, first of all
LOOKS = {  # a student of labels alone is at its best within a few epochs: it is looked at after each
    "student_training.evaluate_every_steps": 120,
    "student_training.patience": 40,
}


def students(out: Path, text: str | None) -> dict[str, Row]:
    """Return the rows by name.

    Args:
        out: the table's folder, where the teachers will lie.
        text: plain text to draw sentences from, for further rows.
    """
    one, folds = (out / TEACHER,), tuple(out / name for name in FOLDS)
    changes: dict[str, dict[str, Any]] = {
        "no transfer set": {"transfer.size": 0},
        "near misses of train alone": {"transfer.sources": "{corrupt: 1}"},
        "samples alone": {"transfer.sources": "{lm_sample: 1}"},
        "a writer that was not tuned": {"transfer.sampler_epochs": 0},
        "temperature 4 to 1": {"distill.temperature": 4, "distill.temperature_end": 1},
        "logit MSE": {"distill.soft_loss": "mse"},
        "hidden states": {"distill.hidden_weight": 1},
        "random embeddings": {"student.embeddings": "random"},
        "4,000 tokens": {"student.vocabulary": 4000},
        "neighbours": {"student_training.lm_weight": 0.1, "student_training.lm_weight_end": 0},
        "GRU": {"student.cell": "gru"},
        "plain RNN": {"student.cell": "rnn"},
        "mean pooling": {"student.pooling": "mean"},
    }
    if text is not None:
        shares = "{corrupt: 1, text: 1, text_corrupt: 1}"
        changes["text in place of samples"] = {"transfer.text": text, "transfer.sources": shares}
    return {
        CONTROL: Row("train-scratch", LOOKS),
        "train-scratch, augmented": Row("train-scratch", {"train_scratch.augmented": True}),
        "distill": taught(one),
        "five teachers": taught(folds),
        "no transfer set, five teachers": taught(folds, {"transfer.size": 0}),
        **{what: taught(one, change) for what, change in changes.items()},
    }


def taught(teachers: tuple[Path, ...], settings: Mapping[str, Any] | None = None) -> Row:
    """Return the row of a student with teachers."""
    return Row("distill", settings or {}, teachers)


def lessons(out: Path, table: Mapping[str, Row]) -> dict[Path, Row]:
    """Return the teachers that have to be tuned before the students."""
    every: dict[str, dict[str, Any]] = {
        TEACHER: {},
        **{name: {"finetune.leave_out": fold} for name, fold in FOLDS.items()},
    }
    asked = {folder for row in table.values() for folder in row.teachers}
    return {out / name: Row("finetune", told) for name, told in every.items() if out / name in asked}


def main() -> None:
    """Read the arguments, train what is missing, and print the table."""
    parser = arguments((__doc__ or "").splitlines()[0], "configs/builtin-cola.yaml", "runs/ablation")
    parser.add_argument("--text", help="plain text that further rows draw sentences from")
    told = parser.parse_args()
    experiments = Experiments(told.config, told.out, told.seeds, told.assign, told.jobs)
    rows = chosen(students(told.out, told.text), told.rows)
    first = lessons(told.out, rows)
    experiments.run_all((row, folder, 0) for folder, row in first.items())
    known = {name: [told.out / folder for folder in folders] for name, folders in TEACHERS.items()}
    known = {name: folders for name, folders in known.items() if set(folders) <= set(first)}
    trained = experiments.train(rows)
    experiments.report(known | trained, CONTROL if CONTROL in rows else None, "ablation")


if __name__ == "__main__":
    main()
