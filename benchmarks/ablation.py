"""What each part of distilling adds: every row of the table is one change, over several seeds.

    python benchmarks/ablation.py --config FILE --out DIR [--text FILE] [--seeds 0 1 2 3 4] [--rows NAME…]

It tunes a teacher on all of train and five more, each without a fifth of it, and a language model to sample
from, as far as the rows ask for them; trains the students of every row; and prints the table, also written to
DIR/ablation.md and DIR/ablation.json. With `--text`, the transfer set of most rows comes from that text, and
else from samples of the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import Experiments, Row, arguments, chosen

CONTROL = "train-scratch"
TEACHER, WRITER = "teachers/0", "language-model"
FOLDS = {f"teachers/{fold}of5": f"{fold}/5" for fold in range(1, 6)}


def students(out: Path, text: str | None) -> dict[str, Row]:
    """Return the rows by name.

    Args:
        out: the table's folder, where the teachers will lie.
        text: plain text to draw sentences from, in place of samples of the base.
    """
    one, folds = (out / TEACHER,), tuple(out / name for name in FOLDS)
    edits = {"transfer.size": 20, "transfer.sources": "{edits: 1}"}
    samples = {"transfer.size": 20, "transfer.sources": "{edits: 1, samples: 1, sample_edits: 1}"}
    from_text = {
        "transfer.size": 20,
        "transfer.text": text,
        "transfer.sources": "{edits: 1, text: 1, text_edits: 1}",
    }
    full, name = (from_text, "edits and text") if text else (samples, "edits and samples")
    writer = {"transfer.language_model": str(out / WRITER / "base")}
    changes: dict[str, dict[str, Any]] = {
        "a quarter of the sentences": {"transfer.size": 5},
        "kd_weight 1": {"distill.kd_weight": 1},
        "temperature 1": {"distill.temperature": 1},
        "logit MSE": {"distill.soft_loss": "mse"},
        "train five times an epoch": {"distill.train_repeats": 5},
        "hidden states": {"distill.hidden_weight": 1},
        "base's embeddings": {"student.embeddings": "base"},
        "4,000 tokens": {"student.vocabulary": 4000},
        "neighbours": {"student_training.lm_weight": 0.1, "student_training.lm_weight_end": 0},
        "GRU": {"student.cell": "gru"},
        "plain RNN": {"student.cell": "rnn"},
        "mean pooling": {"student.pooling": "mean"},
    }
    return {
        CONTROL: Row("train-scratch"),
        "train-scratch, augmented": Row("train-scratch", edits),
        "train-scratch, base's embeddings": Row("train-scratch", {"student.embeddings": "base"}),
        "train alone": taught(one),
        "train alone, five teachers, out of fold": taught(folds),
        "edits": taught(one, edits),
        "edits and samples": taught(one, samples),
        "edits and samples of a writer tuned on train": taught(one, samples | writer),
        name: taught(one, full),
        f"{name}, five teachers": taught(folds, full),
        **{f"{name}, {what}": taught(one, full | change) for what, change in changes.items()},
    }


def taught(teachers: tuple[Path, ...], settings: Mapping[str, Any] | None = None) -> Row:
    """Return the row of a student with teachers."""
    return Row("distill", settings or {}, teachers)


def lessons(out: Path, table: Mapping[str, Row]) -> dict[Path, Row]:
    """Return what has to be tuned before the students: teachers, and the model that writes samples."""
    every: dict[str, dict[str, Any]] = {
        TEACHER: {},
        **{name: {"finetune.leave_out": fold} for name, fold in FOLDS.items()},
        WRITER: {"finetune.objective": "language_modelling", "finetune.epochs": 3},
    }
    asked = {folder for row in table.values() for folder in row.teachers}
    writers = (row.settings.get("transfer.language_model") for row in table.values())
    asked |= {Path(writer).parent for writer in writers if writer is not None}
    return {out / name: Row("finetune", told) for name, told in every.items() if out / name in asked}


def main() -> None:
    """Read the arguments, train what is missing, and print the table."""
    parser = arguments((__doc__ or "").splitlines()[0], "configs/builtin-cola.yaml", "runs/ablation")
    parser.add_argument("--text", help="plain text to draw sentences from, in place of samples")
    told = parser.parse_args()
    experiments = Experiments(told.config, told.out, told.seeds, told.assign, told.jobs)
    rows = chosen(students(told.out, told.text), told.rows)
    first = lessons(told.out, rows)
    experiments.run_all((row, folder, 0) for folder, row in first.items())
    teachers = {
        "teacher": [told.out / TEACHER],
        "five teachers": [told.out / name for name in FOLDS],
    }
    known = {name: folders for name, folders in teachers.items() if set(folders) <= set(first)}
    trained = experiments.train(rows)
    experiments.report(known | trained, CONTROL if CONTROL in rows else None, "ablation")


if __name__ == "__main__":
    main()
