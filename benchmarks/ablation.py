"""What each part of distilling adds: every row of the table is one change, over several seeds.

    python benchmarks/ablation.py --config FILE --out DIR --text FILE [--seeds 0 1 2 3 4] [--rows NAME…]

It tunes a teacher on all of train and five more, each without a fifth of it, and a language model to sample
from, as far as the rows ask for them; trains the students of every row; and prints the table, also written to
DIR/ablation.md and DIR/ablation.json. `--text` is plain text to draw sentences from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import Experiments, Row, arguments, chosen

FOLDS = 5
CONTROL = "train-scratch"


def students(out: Path, text: str | None) -> dict[str, Row]:
    """Return the rows by name.

    Args:
        out: the table's folder, where the teachers will lie.
        text: plain text; without it the rows that need some are left out.
    """
    one = (out / "teachers" / "0",)
    folds = tuple(out / "teachers" / f"{fold + 1}of{FOLDS}" for fold in range(FOLDS))
    edits = {"transfer.size": 20, "transfer.sources": "{edits: 1}"}
    samples = {"transfer.size": 20, "transfer.sources": "{edits: 1, samples: 1, sample_edits: 1}"}
    tuned_writer = {"transfer.language_model": str(out / "language-model" / "base")}
    table = {
        CONTROL: Row("train-scratch"),
        "train-scratch, augmented": Row("train-scratch", edits),
        "train-scratch, base's embeddings": Row("train-scratch", {"student.embeddings": "base"}),
        "train alone": taught(one),
        "train alone, five teachers, out of fold": taught(folds),
        "edits": taught(one, edits),
        "edits and samples": taught(one, samples),
        "edits and samples of a writer tuned on train": taught(one, samples | tuned_writer),
    }
    if text is None:
        return table
    full = {
        "transfer.size": 20,
        "transfer.text": text,
        "transfer.sources": "{edits: 1, text: 1, text_edits: 1}",
    }
    changes: dict[str, dict[str, Any]] = {
        "a quarter of the sentences": {"transfer.size": 5},
        "kd_weight 1": {"distill.kd_weight": 1},
        "temperature 1": {"distill.temperature": 1},
        "logit MSE": {"distill.soft_loss": "mse"},
        "train five times an epoch": {"transfer.train_repeats": 5},
        "hidden states": {"distill.hidden_weight": 1},
        "base's embeddings": {"student.embeddings": "base"},
        "4,000 tokens": {"student.vocabulary": 4000},
        "neighbours": {"student_training.lm_weight": 0.1, "student_training.lm_weight_end": 0},
        "GRU": {"student.cell": "gru"},
        "plain RNN": {"student.cell": "rnn"},
        "mean pooling": {"student.pooling": "mean"},
    }
    return (
        table
        | {"edits and text": taught(one, full), "edits and text, five teachers": taught(folds, full)}
        | {f"edits and text, {name}": taught(one, full | change) for name, change in changes.items()}
    )


def taught(teachers: tuple[Path, ...], settings: Mapping[str, Any] | None = None) -> Row:
    """Return the row of a student with teachers."""
    return Row("distill", settings or {}, teachers)


def lessons(table: Mapping[str, Row]) -> dict[Path, Row]:
    """Return what has to be tuned before the students: teachers, and the model that writes samples."""
    found: dict[Path, Row] = {}
    for row in table.values():
        for folder in row.teachers:
            fold = folder.name.replace("of", "/")
            found[folder] = Row("finetune", {"finetune.leave_out": fold} if "/" in fold else {})
        if writer := row.settings.get("transfer.language_model"):
            writing = {"finetune.objective": "language_modelling", "finetune.epochs": 3}
            found[Path(writer).parent] = Row("finetune", writing)
    return found


def main() -> None:
    """Read the arguments, train what is missing, and print the table."""
    parser = arguments((__doc__ or "").splitlines()[0], "configs/builtin-students.yaml", "runs/ablation")
    parser.add_argument("--text", help="plain text to draw sentences from")
    told = parser.parse_args()
    experiments = Experiments(told.config, told.out, told.seeds, told.assign, told.jobs)
    rows = chosen(students(told.out, told.text), told.rows)
    first = lessons(rows)
    experiments.run_all((row, folder, 0) for folder, row in first.items())
    teachers = {
        name: folders
        for name, folders in (
            ("teacher", [folder for folder in first if folder.name == "0"]),
            ("five teachers", [folder for folder in first if "of" in folder.name]),
        )
        if folders
    }
    experiments.report(teachers | experiments.train(rows), CONTROL if CONTROL in rows else None, "ablation")


if __name__ == "__main__":
    main()
