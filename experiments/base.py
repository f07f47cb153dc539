"""What a base is worth on CoLA: adapters, all its weights, no pre-training, and a recurrent network.

    python experiments/base.py --config FILE --out DIR [--seeds 0 1 2 3 4] [--rows NAME…]

It prints the table, also written to DIR/base.md and DIR/base.json.
"""

from __future__ import annotations

from experiments import Experiments, Row, arguments, chosen

CONTROL = "LSTM, labels alone"
ROWS = {
    "LoRA on the base": Row("finetune"),
    "all weights of the base": Row("finetune", {"finetune.method": "full", "finetune.lr": 2e-4}),
    "all weights, drawn anew": Row(
        "finetune",
        {
            "finetune.method": "full",
            "finetune.from_scratch": True,
            "finetune.lr": 5e-4,
            "finetune.epochs": 10,
            "finetune.patience": 4,
        },
    ),
    CONTROL: Row("train-scratch"),
}


def main() -> None:
    """Read the arguments, train what is missing, and print the table."""
    parser = arguments((__doc__ or "").splitlines()[0], "configs/builtin-cola.yaml", "runs/base")
    told = parser.parse_args()
    experiments = Experiments(told.config, told.out, told.seeds, told.assign, told.jobs)
    rows = chosen(ROWS, told.rows)
    experiments.report(experiments.train(rows), CONTROL if CONTROL in rows else None, "base")


if __name__ == "__main__":
    main()
