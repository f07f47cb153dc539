"""A student's training steps: colakit beside torch's own bidirectional LSTM over packed sequences.

    python benchmarks/student_steps.py [--data CORPUS] [--steps N] [--repeats N] [--batch-size N] [--out FILE]

The student has the shape that `colakit distill` gives it, GPT-2's vocabulary, and logits to match, no matter
which. Beside it, the same network as one writes it with torch, with the same objective and optimizer: on
batches of shuffled sentences, and on colakit's, which hold sentences of like length; in fp32, and in bf16
where colakit's recurrent layers train in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from finetuning import RATE, Clock, read_examples, step_parser
from measuring import Table, Way, compare, in_turn, precision_of, report
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import constant, distillation

OURS, OURS_FP32 = "colakit, as it comes", "colakit, fp32"
RIVAL = "torch's LSTM, packed"
OBJECTIVE = distillation(kd_weight=constant(0.5), temperature=constant(2.0))

Plan = Sequence[NDArray[np.int64]]


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    description = (__doc__ or "").splitlines()[0]
    arguments = step_parser(description, "student-steps", steps=50, batch_size=64).parse_args()
    config = RNNConfig(vocab_size=50257)
    examples = read_examples(arguments.data, config.vocab_size)
    bench = StudentSteps(config, examples, arguments.steps, arguments.batch_size)
    report([bench.table(arguments.repeats)], vars(arguments), arguments.out)


@dataclass(frozen=True)
class StudentSteps:
    """Steps of one size of one student.

    Attributes:
        steps: measured, after one that is not.
    """

    config: RNNConfig
    examples: Examples
    steps: int
    batch_size: int

    def table(self, repeats: int) -> Table:
        """Measure all ways in turn; return sentences a second."""
        prepare_cpu()
        ways = self.ways()
        title = f"Distilling, a student's steps of {self.batch_size} sentences"
        return compare(title, ways, in_turn(ways, repeats), RATE, ours=OURS)

    def ways(self) -> list[Way]:
        """Return what is measured here."""
        grouped = plan_epoch(self.examples.tokens.lengths, self.batch_size, 0, 0)[: self.steps + 1]
        order = np.concatenate(grouped)  # the same sentences, in batches of all lengths
        np.random.default_rng(0).shuffle(order)
        shuffled = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        precision = "fp32" if resolve_compute("auto", "auto").device.type != "cpu" else precision_of()
        ours_fp32 = OURS if precision == "fp32" else OURS_FP32
        found = [
            Way(f"{RIVAL}, shuffled", "fp32", lambda: self.packed(shuffled, "fp32"), ours_fp32),
            Way(f"{RIVAL}, grouped by length", "fp32", lambda: self.packed(grouped, "fp32"), ours_fp32),
        ]
        if precision == "bf16":
            best = f"{RIVAL}, bf16, grouped by length"
            found += [
                Way(best, "bf16", lambda: self.packed(grouped, "bf16"), OURS),
                Way(OURS_FP32, "fp32", lambda: self.colakit(grouped, "fp32"), OURS),
            ]
        return [*found, Way(OURS, precision, lambda: self.colakit(grouped, "auto"))]

    def colakit(self, plan: Plan, precision: str) -> dict[str, float]:
        """Train with colakit's loop."""
        compute = resolve_compute("auto", precision)
        examples = self.taught()
        model = DistilRNN(self.config)
        model.train_rows(torch.from_numpy(examples.tokens.ids.astype(np.int64)))
        model.to(compute.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        batches = (
            StepBatch(micro_batches(examples, index, self.batch_size), len(index), 0, f"{position}")
            for position, index in enumerate(plan)
        )
        clock = Clock()
        for step in train(model, batches, OBJECTIVE, optimizer, lr_at=lambda step: 1.0, compute=compute):
            clock.step(step.count)
        return clock.figures()

    def packed(self, plan: Plan, precision: str) -> dict[str, float]:
        """Train torch's network in a loop of few lines."""
        compute = resolve_compute("auto", precision)
        examples = self.taught()
        model = Packed(self.config).to(compute.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        clock = Clock()
        for index in plan:
            batch = examples.batch(index).to(compute.device)
            with compute.autocast():
                loss = OBJECTIVE(model, batch).total / len(index)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            clock.step(len(index))
        return clock.figures()

    def taught(self) -> Examples:
        """Return the sentences with logits of nobody's."""
        shape = (len(self.examples), self.config.num_labels)
        logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return replace(self.examples, teacher_logits=logits)


class Packed(nn.Module):
    """The same student as one writes it: packed sequences through `nn.LSTM`, attention over its states."""

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
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
