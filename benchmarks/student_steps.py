"""Throughput of a student's training steps: colakit and PyTorch's bidirectional LSTM on packed sequences.

    python benchmarks/student_steps.py [--data CORPUS] [--steps N] [--repeats N] [--batch-size N] [--out FILE]

The student has the default shape of `colakit distill`, GPT-2's vocabulary, and random teacher logits. The
baseline is the same network with `nn.LSTM`, objective and optimizer, on shuffled batches and on colakit's
batches of similar length; in fp32, and in bf16 where colakit's recurrent layers train in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from harness import SENTENCE_RATE, StepTimer, Table, Variant, auto_precision, make_parser, measure, report
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from workspaces import random_examples

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import constant, distillation

REFERENCE, REFERENCE_FP32 = "colakit, defaults", "colakit, fp32"
BASELINE = "nn.LSTM, packed"
OBJECTIVE = distillation(kd_weight=constant(0.5), temperature=constant(2.0))

Plan = Sequence[NDArray[np.int64]]
"""Indices of the sentences of each batch."""


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = make_parser(__doc__, "student-steps", data=None, steps=50, batch_size=64, repeats=3)
    arguments = parser.parse_args()
    config = RNNConfig(vocab_size=50257)
    examples = random_examples(arguments.data, config.vocab_size)
    benchmark = StudentSteps(config, examples, arguments.steps, arguments.batch_size)
    report([benchmark.table(arguments.repeats)], vars(arguments), arguments.out)


@dataclass(frozen=True)
class StudentSteps:
    """Training steps of one student.

    Attributes:
        steps: number of measured steps, after one warm-up step.
    """

    config: RNNConfig
    examples: Examples
    steps: int
    batch_size: int

    def table(self, repeats: int) -> Table:
        """Return the table of sentences a second."""
        prepare_cpu()
        variants = self.variants()
        title = f"Distilling, a student's steps of {self.batch_size} sentences"
        return measure(title, variants, repeats, SENTENCE_RATE, reference=REFERENCE)

    def variants(self) -> list[Variant]:
        """Return the training loops to compare."""
        grouped = plan_epoch(self.examples.tokens.lengths, self.batch_size, 0, 0)[: self.steps + 1]
        order = np.concatenate(grouped)  # the same sentences, in batches of mixed lengths
        np.random.default_rng(0).shuffle(order)
        shuffled = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        precision = "fp32" if resolve_compute("auto", "auto").device.type != "cpu" else auto_precision()
        fp32 = REFERENCE if precision == "fp32" else REFERENCE_FP32
        variants = [
            Variant(f"{BASELINE}, shuffled", "fp32", lambda: self.packed(shuffled, "fp32"), fp32),
            Variant(f"{BASELINE}, grouped by length", "fp32", lambda: self.packed(grouped, "fp32"), fp32),
        ]
        if precision == "bf16":
            name = f"{BASELINE}, bf16, grouped by length"
            variants += [
                Variant(name, "bf16", lambda: self.packed(grouped, "bf16"), REFERENCE),
                Variant(REFERENCE_FP32, "fp32", lambda: self.colakit(grouped, "fp32"), REFERENCE),
            ]
        return [*variants, Variant(REFERENCE, precision, lambda: self.colakit(grouped, "auto"))]

    def colakit(self, plan: Plan, precision: str) -> dict[str, float]:
        """Train with colakit's loop."""
        compute = resolve_compute("auto", precision)
        examples = self.with_teacher_logits()
        model = DistilRNN(self.config)
        model.train_rows(torch.from_numpy(examples.tokens.ids.astype(np.int64)))
        model.to(compute.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        batches = (
            StepBatch(micro_batches(examples, index, self.batch_size), len(index), 0, f"{position}")
            for position, index in enumerate(plan)
        )
        timer = StepTimer()
        for step in train(model, batches, OBJECTIVE, optimizer, lr_at=lambda step: 1.0, compute=compute):
            timer.step(step.count)
        return timer.values()

    def packed(self, plan: Plan, precision: str) -> dict[str, float]:
        """Train the baseline in a plain loop."""
        compute = resolve_compute("auto", precision)
        examples = self.with_teacher_logits()
        model = PackedRNN(self.config).to(compute.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        timer = StepTimer()
        for index in plan:
            batch = examples.batch(index).to(compute.device)
            with compute.autocast():
                loss = OBJECTIVE(model, batch).total / len(index)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            timer.step(len(index))
        return timer.values()

    def with_teacher_logits(self) -> Examples:
        """Return the sentences with random teacher logits (N, C)."""
        shape = (len(self.examples), self.config.num_labels)
        logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return replace(self.examples, teacher_logits=logits)


class PackedRNN(nn.Module):
    """The student's architecture with `nn.LSTM` on packed sequences."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            num_layers=config.num_layers,
            batch_first=True,
            bidirectional=True,
        )
        self.attention = nn.Linear(2 * config.hidden_size, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.score = nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits (B, C) of (B, T) tokens."""
        x = self.dropout(self.embedding(input_ids))
        lengths = attention_mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]  # (B, T, 2H)
        padding = attention_mask[:, :, None] == 0
        weights = self.attention(states).masked_fill(padding, -torch.inf).softmax(dim=1)
        return self.score(self.dropout((weights * states).sum(dim=1)))


if __name__ == "__main__":
    main()
