"""One epoch of distilling as it is often written: the teacher answers at every step, and nothing is kept.

    python benchmarks/teacher_loop.py --teacher RUN --data FOLDER [--whose colakit|peft] [--batch-size N]

Student, objective, optimizer and sentences are those of `colakit distill`. `colakit`: the teacher is computed
as colakit computes it, on batches of like length. `peft`: it is the run's adapter in PEFT, fp32, on shuffled
batches padded to their longest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colakit.config.settings import Settings
from colakit.data.batches import Batch, Examples, plan_epoch
from colakit.data.corpora import load_corpus
from colakit.data.splits import train_val_split
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.forward import compute_logits, evaluating
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute, prepare_cpu, resolve_compute
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import constant, distillation

Ask = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Train a student for an epoch and measure it on the held-out slice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of `colakit finetune`")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--whose", choices=("colakit", "peft"), default="colakit")
    arguments = parser.parse_args()
    prepare_cpu()
    settings, compute = Settings(), resolve_compute("auto", "auto")
    teacher = load_classifier(arguments.teacher)
    learnt, held_out = train_val_split(
        load_corpus(arguments.data).split("train"), settings.data.val_fraction, settings.data.val_seed
    )
    examples = Examples(teacher.encode(learnt.sentences), learnt.require_labels())
    ours = arguments.whose == "colakit"
    asked = colakits(teacher, compute) if ours else pefts(arguments.teacher, teacher, compute)
    student = DistilRNN(RNNConfig(teacher.tokenizer.vocab_size))
    student.train_rows(torch.from_numpy(examples.tokens.ids.astype(np.int64)))
    student.to(compute.device).train()
    learn(student, examples, asked, settings, compute, grouped=ours)
    compute_logits(student, teacher.encode(held_out.sentences), compute)


def colakits(teacher: SentenceClassifier, compute: Compute) -> Ask:
    """Return how colakit's own model is asked."""
    compute.place(teacher.model.requires_grad_(False))

    def ask(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with evaluating(teacher.model), compute.autocast():
            return teacher.model(input_ids, attention_mask)

    return ask


def pefts(run: Path, teacher: SentenceClassifier, compute: Compute) -> Ask:
    """Return how the run's adapter is asked through PEFT."""
    from peft import AutoPeftModelForSequenceClassification

    padding = teacher.tokenizer.end_of_text_id
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(run / "adapter", pad_token_id=padding)
    model = loaded.to(compute.device).eval()

    def ask(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.inference_mode():
            ids = input_ids.masked_fill(attention_mask == 0, padding)
            return model(ids, attention_mask=attention_mask).logits

    return ask


def learn(
    student: DistilRNN, examples: Examples, ask: Ask, settings: Settings, compute: Compute, *, grouped: bool
) -> None:
    """Train for an epoch, asking the teacher at every step.

    Args:
        grouped: whether batches hold sentences of like length.
    """
    training, distill = settings.student_training, settings.distill
    size, lengths = training.batch_size, examples.tokens.lengths
    order = np.random.default_rng(0).permutation(len(examples))
    shuffled = [order[start : start + size] for start in range(0, len(order), size)]

    def batches() -> Iterator[StepBatch]:
        for number, index in enumerate(plan_epoch(lengths, size, 0, 0) if grouped else shuffled):
            batch = taught(examples.batch(index).to(compute.device), ask)
            yield StepBatch([batch], len(index), 0, f"batch {number}")

    objective = distillation(kd_weight=constant(distill.kd_weight), temperature=constant(distill.temperature))
    optimizer = torch.optim.AdamW(student.parameters(), lr=training.lr, fused=True)
    for _ in train(student, batches(), objective, optimizer, lr_at=lambda step: 1.0, compute=compute):
        pass


def taught(batch: Batch, ask: Ask) -> Batch:
    """Return the batch with what the teacher says of it."""
    return replace(batch, teacher_logits=ask(batch.input_ids, batch.attention_mask).float().clone())


if __name__ == "__main__":
    main()
