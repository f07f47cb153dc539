"""Baseline: LoRA with PEFT and transformers' Trainer, as an independent script.

    python benchmarks/peft_trainer.py --base FOLDER --data FOLDER --out FOLDER [--best PRECISION] [--epochs N]
    …

It does the work of `colakit finetune` without importing colakit: it evaluates a tenth of train as validation
split after every epoch, measures dev at the end, and saves the adapter.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path
from typing import Any

import torch

RANK, ALPHA = 8, 16
FILES = {"train": "in_domain_train.tsv", "id_dev": "in_domain_dev.tsv", "ood_dev": "out_of_domain_dev.tsv"}

Rows = list[dict[str, Any]]


def main() -> None:
    """Parse the arguments and fine-tune."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder in CoLA's layout")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--best", choices=("bf16", "fp32"), help="group by length and use this precision")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers-to-transform", help="blocks to adapt, such as 6,7,8; default: all")
    finetune(parser.parse_args())


def finetune(arguments: argparse.Namespace) -> None:
    """Train with an evaluation every epoch, measure dev, and save the adapter."""
    from transformers import AutoTokenizer, Trainer

    silence()
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    splits = {name: read(arguments.data / file, tokenizer) for name, file in FILES.items()}
    num_val = len(splits["train"]) // 10
    layers = arguments.layers_to_transform
    numbers = [int(number) for number in layers.split(",")] if layers else None
    model = lora_model(arguments.base, pad_token_id=tokenizer.eos_token_id, layers=numbers)
    settings = training_arguments(
        arguments.out,
        arguments.batch_size,
        arguments.best,
        num_train_epochs=arguments.epochs,
        per_device_eval_batch_size=128,
        eval_strategy="epoch",
    )
    trainer = Trainer(
        model,
        settings,
        train_dataset=splits["train"][num_val:],
        eval_dataset=splits["train"][:num_val],
        data_collator=collate,
    )
    trainer.train()
    for name in ("id_dev", "ood_dev"):
        trainer.predict(splits[name])
    model.save_pretrained(arguments.out / "adapter")


def silence() -> None:
    """Turn off warnings, log messages and progress bars of transformers and PEFT."""
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read(path: Path, tokenizer: Any) -> Rows:
    """Read and tokenise one of CoLA's files."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    encoded = tokenizer([row[3] for row in rows])["input_ids"]
    return [{"input_ids": ids, "labels": int(row[1])} for ids, row in zip(encoded, rows, strict=True)]


def lora_model(base: Path, pad_token_id: int = 0, layers: list[int] | None = None) -> Any:
    """Return the base with a head of two classes and PEFT's LoRA on its linear layers.

    Args:
        layers: numbers of the adapted blocks; None is all.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=pad_token_id)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        layers_to_transform=layers,
    )
    return get_peft_model(model, lora)


def training_arguments(out: Path, batch_size: int, best: str | None, **others: Any) -> Any:
    """Return the Trainer's settings.

    Args:
        best: None keeps its defaults: fp32, shuffled batches padded to their longest sentence. `bf16` or
        `fp32`
            groups sentences by length and computes in that precision.
    """
    from transformers import TrainingArguments

    flags: dict[str, Any] = {} if best is None else {"train_sampling_strategy": "group_by_length"}
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        bf16=best == "bf16",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        **flags,
        **others,
    )


def collate(rows: Rows) -> dict[str, torch.Tensor]:
    """Pad to the longest sentence of the batch, as `DataCollatorWithPadding` does by default."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


if __name__ == "__main__":
    main()
