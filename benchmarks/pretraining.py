"""Pre-training steps of a small GPT-2: colakit beside transformers in the loop that one writes with torch.

    python benchmarks/pretraining.py [--steps N] [--repeats N] [--batch-size N] [--out FILE]

The model is as large as the base that comes along, and its windows hold random tokens. The rival is
`GPT2LMHeadModel` under autocast with fused AdamW, as it comes and through `torch.compile`. Everybody
multiplies in the precision that `auto` takes here, in micro-batches of one size, and clips the gradient.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetuning import Clock, random_gpt2
from measuring import Figure, Table, Way, compare, in_turn, precision_of, report
from rivals import quiet
from torch import Tensor

from colakit.data.batches import Batch
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import set_dropout
from colakit.runtime.device import compiles, prepare_cpu, resolve_compute
from colakit.storage.gpt2 import load_gpt
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import language_modelling
from colakit.training.optimizers import pretraining_optimizer
from colakit.utils.array_cache import default_cache

OURS = "colakit with AdamW"
RATE = Figure("tokens_per_second", "tokens/s", more_is_better=True)
SHAPE = GPTConfig(vocab_size=8192, num_positions=128, width=384, num_layers=6, num_heads=6)
MICRO_BATCH = 32  # windows


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="measured steps a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128, help="windows a step")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretraining.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = random_gpt2(Path(scratch) / "base", SHAPE)
        table = Pretraining(base, arguments.steps, arguments.batch_size).table(arguments.repeats)
    report([table], vars(arguments), arguments.out)


@dataclass(frozen=True)
class Pretraining:
    """Steps of one size of one base.

    Attributes:
        base: folder in the transformers layout; windows are as long as it can read.
        steps: measured, after one that is not.
        batch_size: windows a step.
    """

    base: Path
    steps: int
    batch_size: int

    def table(self, repeats: int) -> Table:
        """Measure all ways in turn; return tokens a second."""
        prepare_cpu()
        quiet()
        ways = self.ways()
        title = f"Pre-training, steps of {self.batch_size} windows"
        return compare(title, ways, in_turn(ways, repeats), RATE, ours=OURS)

    def ways(self) -> list[Way]:
        """Return what is measured here; what is compiled, only where there is a compiler."""
        precision = precision_of()
        found = [Way("transformers", precision, partial(self.transformers, compiled=False), OURS)]
        if compiles(resolve_compute("auto", "auto").device, "auto")[0]:
            found.append(
                Way("transformers, compiled", precision, partial(self.transformers, compiled=True), OURS)
            )
        return [
            *found,
            Way("colakit with Muon", precision, partial(self.colakit, optimizer="muon"), OURS),
            Way(OURS, precision, partial(self.colakit, optimizer="adamw")),
        ]

    def windows(self, vocab_size: int, tokens: int) -> Iterator[list[Tensor]]:
        """Yield the micro-batches (B, T) of every step."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.steps + 1):
            step = torch.randint(vocab_size, (self.batch_size, tokens), generator=generator)
            yield list(step.split(MICRO_BATCH))

    def colakit(self, optimizer: str) -> dict[str, float]:
        """Train with colakit's loop."""
        torch.compiler.reset()
        compute = resolve_compute("auto", "auto").with_kernels("auto", default_cache() / "native")
        model = load_gpt(self.base)
        set_dropout(model, 0.0)
        compute.place(model)
        if compiles(compute.device, "auto")[0]:
            model.transformer.compile()
        tokens = model.config.num_positions
        batches = (
            StepBatch(
                [Batch(ids, torch.ones_like(ids)) for ids in step],
                count=self.batch_size * tokens,
                epoch=0,
                name=f"{position}",
            )
            for position, step in enumerate(self.windows(model.config.vocab_size, tokens + 1))
        )
        chosen = pretraining_optimizer(model, optimizer, lr=1e-3, muon_lr=6e-3, weight_decay=0.1)
        clock = Clock(RATE)
        for step in train(
            model.train(), batches, language_modelling, chosen, lr_at=lambda step: 1.0, compute=compute
        ):
            clock.step(step.count)
        return clock.figures()

    def transformers(self, *, compiled: bool) -> dict[str, float]:
        """Train transformers' model in a loop of few lines."""
        from transformers import GPT2LMHeadModel

        torch.compiler.reset()
        compute = resolve_compute("auto", "auto")
        found = GPT2LMHeadModel.from_pretrained(
            self.base, dtype=torch.float32, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
        )
        network = found.to(compute.device).train()
        model: Any = torch.compile(network) if compiled else network
        tokens = network.config.n_positions
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        clock = Clock(RATE)
        for step in self.windows(network.config.vocab_size, tokens):
            for ids in step:
                here = ids.to(compute.device)
                with compute.autocast():
                    loss = model(input_ids=here, labels=here).loss / len(step)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock.step(self.batch_size * tokens)
        return clock.figures()


if __name__ == "__main__":
    main()
