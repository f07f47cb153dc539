"""One epoch of distillation with a teacher that runs at every step, without cached logits.

    python benchmarks/teacher_loop.py --teacher RUN --data FOLDER [--implementation colakit|peft]

Student, objective, optimizer and sentences are those of `colakit distill`. With `colakit`, the teacher is
colakit's model on batches of similar length. With `peft`, it is the run's adapter in PEFT, in fp32, on
shuffled batches padded to their longest sentence.
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
from colakit.data.batches import Examples, plan_epoch
from colakit.data.corpora import load_corpus
from colakit.data.splits import train_val_split
from colakit.inference.classifier import SentenceClassifier, load_classifier
from colakit.inference.forward import compute_logits, evaluating
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import Compute, prepare_cpu, resolve_compute
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import constant, distillation

TeacherLogits = Callable[[Tensor, Tensor], Tensor]
"""Maps `input_ids` and `attention_mask` (B, T) to logits (B, C)."""


def main() -> None:
    """Train a student for an epoch and evaluate it on the validation split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of `colakit finetune`")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--implementation", choices=("colakit", "peft"), default="colakit")
    arguments = parser.parse_args()
    prepare_cpu()
    settings, compute = Settings(), resolve_compute("auto", "auto")
    teacher = load_classifier(arguments.teacher)
    train_split, val = train_val_split(
        load_corpus(arguments.data).split("train"), settings.data.val_fraction, settings.data.val_seed
    )
    examples = Examples(teacher.encode(train_split.sentences), train_split.require_labels())
    is_colakit = arguments.implementation == "colakit"
    teacher_logits = (
        colakit_teacher(teacher, compute) if is_colakit else peft_teacher(arguments.teacher, teacher, compute)
    )
    student = DistilRNN(RNNConfig(teacher.tokenizer.vocab_size))
    student.train_rows(torch.from_numpy(examples.tokens.ids.astype(np.int64)))
    student.to(compute.device).train()
    distill(student, examples, teacher_logits, settings, compute, grouped=is_colakit)
    compute_logits(student, teacher.encode(val.sentences), compute)


def colakit_teacher(teacher: SentenceClassifier, compute: Compute) -> TeacherLogits:
    """Return the forward pass of colakit's model."""
    compute.place(teacher.model.requires_grad_(False))

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with evaluating(teacher.model), compute.autocast():
            return teacher.model(input_ids, attention_mask)

    return forward


def peft_teacher(run: Path, teacher: SentenceClassifier, compute: Compute) -> TeacherLogits:
    """Return the forward pass of the run's adapter in PEFT."""
    from peft import AutoPeftModelForSequenceClassification

    padding = teacher.tokenizer.end_of_text_id
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(run / "adapter", pad_token_id=padding)
    model = loaded.to(compute.device).eval()

    @torch.inference_mode()
    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids = input_ids.masked_fill(attention_mask == 0, padding)
        return model(ids, attention_mask=attention_mask).logits

    return forward


def distill(
    student: DistilRNN,
    examples: Examples,
    teacher_logits: TeacherLogits,
    settings: Settings,
    compute: Compute,
    *,
    grouped: bool,
) -> None:
    """Train for an epoch with a forward pass of the teacher at every step.

    Args:
        grouped: whether batches hold sentences of similar length.
    """
    size, lengths = settings.student_training.batch_size, examples.tokens.lengths
    order = np.random.default_rng(0).permutation(len(examples))
    shuffled = [order[start : start + size] for start in range(0, len(order), size)]

    def batches() -> Iterator[StepBatch]:
        for number, index in enumerate(plan_epoch(lengths, size, 0, 0) if grouped else shuffled):
            batch = examples.batch(index).to(compute.device)
            logits = teacher_logits(batch.input_ids, batch.attention_mask).float().clone()
            yield StepBatch([replace(batch, teacher_logits=logits)], len(index), 0, f"batch {number}")

    objective = distillation(
        kd_weight=constant(settings.distill.kd_weight), temperature=constant(settings.distill.temperature)
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.student_training.lr, fused=True)
    for _ in train(student, batches(), objective, optimizer, lr_at=lambda step: 1.0, compute=compute):
        pass


if __name__ == "__main__":
    main()
