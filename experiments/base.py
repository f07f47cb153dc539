"""Value of the pretrained base on CoLA: LoRA, full fine-tuning, no pre-training, and a plain RNN.

    python experiments/base.py --config FILE --out DIR [--seeds 0 1 2 3 4] [--rows NAME…]

Prints the table and writes it to DIR/base.md and DIR/base.json.
"""

from __future__ import annotations

from table import Row, make_parser, make_table, select_rows

CONTROL = "LSTM, labels alone"
FULL = {"finetune.method": "full"}
SCRATCH = {**FULL, "finetune.from_scratch": True, "finetune.epochs": 10, "finetune.patience": 4}
ROWS = {
    "LoRA on the base": Row("finetune"),
    "all weights of the base": Row("finetune", {**FULL, "finetune.lr": 2e-4}),
    "all weights, drawn anew": Row("finetune", {**SCRATCH, "finetune.lr": 5e-4}),
    CONTROL: Row("train-scratch"),
}


def main() -> None:
    """Parse the arguments, train the missing runs, and print the table."""
    arguments = make_parser(__doc__, "runs/base").parse_args()
    table, rows = make_table(arguments), select_rows(ROWS, arguments.rows)
    table.report(table.train(rows), CONTROL if CONTROL in rows else None, "base")


if __name__ == "__main__":
    main()
