"""Ablation of distillation: each row changes one setting, over several seeds.

    python experiments/ablation.py --config FILE --out DIR [--text FILE] [--seeds 0 1 2 3 4] [--rows NAME…]

Fine-tunes the teachers that the rows need (one on all of train, five without a fifth of it each), then trains
the students of every row. Prints the table and writes it to DIR/ablation.md and DIR/ablation.json. The row
`distill` is the config file itself; `--text` adds a row that draws sentences from that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from table import Row, make_parser, make_table, select_rows

CONTROL = "train-scratch"
TEACHER = "teachers/0"
FOLDS = {f"teachers/{fold}of5": f"{fold}/5" for fold in range(1, 6)}
TEACHERS = {"teacher": [TEACHER], "teachers without a fifth": list(FOLDS)}  # first rows of the table
EVERY_EPOCH = {  # a student without a teacher overfits after a few epochs, so evaluate every epoch
    "student_training.evaluate_every_steps": 120,
    "student_training.patience": 40,
}


def student_rows(out: Path, text: str | None) -> dict[str, Row]:
    """Return the rows by name.

    Args:
        out: folder of the table, which holds the teachers.
        text: plain-text file for a further row.
    """
    one, folds = (out / TEACHER,), tuple(out / name for name in FOLDS)
    changes: dict[str, dict[str, Any]] = {
        "no transfer set": {"transfer.size": 0},
        "corrupted train sentences only": {"transfer.sources": "{corrupt: 1}"},
        "samples only": {"transfer.sources": "{lm_sample: 1}"},
        "sampler not fine-tuned": {"transfer.sampler_epochs": 0},
        "temperature 4 to 1": {"distill.temperature": 4, "distill.temperature_end": 1},
        "logit MSE": {"distill.soft_loss": "mse"},
        "hidden states": {"distill.hidden_weight": 1},
        "random embeddings": {"student.embeddings": "random"},
        "4,000 tokens": {"student.vocabulary": 4000},
        "auxiliary LM loss": {"student_training.lm_weight": 0.1, "student_training.lm_weight_end": 0},
        "GRU": {"student.cell": "gru"},
        "plain RNN": {"student.cell": "rnn"},
        "mean pooling": {"student.pooling": "mean"},
    }
    if text is not None:
        shares = "{corrupt: 1, text: 1, text_corrupt: 1}"
        changes["text in place of samples"] = {"transfer.text": text, "transfer.sources": shares}
    return {
        CONTROL: Row("train-scratch", EVERY_EPOCH),
        "train-scratch, augmented": Row("train-scratch", {"train_scratch.augmented": True}),
        "distill": Row("distill", {}, one),
        "five teachers": Row("distill", {}, folds),
        "no transfer set, five teachers": Row("distill", {"transfer.size": 0}, folds),
        **{name: Row("distill", change, one) for name, change in changes.items()},
    }


def teacher_rows(out: Path, rows: Mapping[str, Row]) -> dict[Path, Row]:
    """Return the fine-tuning runs of the teachers that the rows use, by run folder."""
    settings = {TEACHER: {}, **{name: {"finetune.leave_out": fold} for name, fold in FOLDS.items()}}
    used = {folder for row in rows.values() for folder in row.teachers}
    return {out / name: Row("finetune", own) for name, own in settings.items() if out / name in used}


def main() -> None:
    """Parse the arguments, train the missing runs, and print the table."""
    parser = make_parser(__doc__, "runs/ablation")
    parser.add_argument("--text", help="plain-text file for the row that draws sentences from it")
    arguments = parser.parse_args()
    table, out = make_table(arguments), arguments.out
    rows = select_rows(student_rows(out, arguments.text), arguments.rows)
    teachers = teacher_rows(out, rows)
    table.run((row, folder, 0) for folder, row in teachers.items())
    groups = {name: [out / folder for folder in folders] for name, folders in TEACHERS.items()}
    groups = {name: folders for name, folders in groups.items() if set(folders) <= set(teachers)}
    table.report(groups | table.train(rows), CONTROL if CONTROL in rows else None, "ablation")


if __name__ == "__main__":
    main()
