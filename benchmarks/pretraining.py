"""Throughput of GPT-2 pre-training steps: colakit and a plain PyTorch loop around transformers' model.

    python benchmarks/pretraining.py [--steps N] [--repeats N] [--batch-size N] [--out FILE]

The model has the shape of colakit's built-in base; its windows hold random tokens. The baseline is
`GPT2LMHeadModel` under autocast with fused AdamW, eager and through `torch.compile`. All variants use the
precision of `--precision auto`, micro-batches of one size, and gradient clipping.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import TOKEN_RATE, StepTimer, Table, Variant, auto_precision, make_parser, measure, report
from peft_trainer import silence
from torch import Tensor
from workspaces import write_random_gpt2

from colakit.data.batches import Batch
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import set_dropout
from colakit.runtime.device import compiles, prepare_cpu, resolve_compute
from colakit.storage.gpt2 import load_gpt
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import language_modelling
from colakit.training.optimizers import pretraining_optimizer
from colakit.utils.array_cache import default_cache

REFERENCE = "colakit with AdamW"
SHAPE = GPTConfig(vocab_size=8192, num_positions=128, width=384, num_layers=6, num_heads=6)
MICRO_BATCH_SIZE = 32  # windows


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    arguments = make_parser(__doc__, "pretraining", steps=4, batch_size=128, repeats=3).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = write_random_gpt2(Path(scratch) / "base", SHAPE)
        table = Pretraining(base, arguments.steps, arguments.batch_size).table(arguments.repeats)
    report([table], vars(arguments), arguments.out)


@dataclass(frozen=True)
class Pretraining:
    """Pre-training steps of one base.

    Attributes:
        base: folder in the transformers layout; windows are as long as its context.
        steps: number of measured steps, after one warm-up step.
        batch_size: windows a step.
    """

    base: Path
    steps: int
    batch_size: int

    def table(self, repeats: int) -> Table:
        """Return the table of tokens a second."""
        prepare_cpu()
        silence()
        variants = self.variants()
        title = f"Pre-training, steps of {self.batch_size} windows"
        return measure(title, variants, repeats, TOKEN_RATE, reference=REFERENCE)

    def variants(self) -> list[Variant]:
        """Return the loops to compare; compiled ones only where there is a compiler."""
        precision = auto_precision()
        eager = Variant("transformers", precision, partial(self.transformers, compiled=False), REFERENCE)
        compiled = Variant(
            "transformers, compiled", precision, partial(self.transformers, compiled=True), REFERENCE
        )
        return [
            eager,
            *([compiled] if compiles(resolve_compute("auto", "auto").device, "auto")[0] else []),
            Variant("colakit with Muon", precision, partial(self.colakit, optimizer="muon"), REFERENCE),
            Variant(REFERENCE, precision, partial(self.colakit, optimizer="adamw")),
        ]

    def windows(self, vocab_size: int, tokens: int) -> Iterator[list[Tensor]]:
        """Yield the micro-batches (B, T) of every step."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.steps + 1):
            step = torch.randint(vocab_size, (self.batch_size, tokens), generator=generator)
            yield list(step.split(MICRO_BATCH_SIZE))

    def colakit(self, optimizer: str) -> dict[str, float]:
        """Train with colakit's loop."""
        torch.compiler.reset()
        compute = resolve_compute("auto", "auto").with_kernels("auto", default_cache() / "native")
        model = load_gpt(self.base)
        set_dropout(model, 0.0)
        compute.place(model)
        if compiles(compute.device, "auto")[0]:
            model.body.compile()
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
        timer = StepTimer(TOKEN_RATE)
        for step in train(
            model.train(), batches, language_modelling, chosen, lr_at=lambda step: 1.0, compute=compute
        ):
            timer.step(step.count)
        return timer.values()

    def transformers(self, *, compiled: bool) -> dict[str, float]:
        """Train transformers' model in a plain loop."""
        from transformers import GPT2LMHeadModel

        torch.compiler.reset()
        compute = resolve_compute("auto", "auto")
        network = GPT2LMHeadModel.from_pretrained(
            self.base, dtype=torch.float32, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
        )
        network = network.to(compute.device).train()
        model: Any = torch.compile(network) if compiled else network
        tokens = network.config.n_positions
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        timer = StepTimer(TOKEN_RATE)
        for step in self.windows(network.config.vocab_size, tokens):
            for ids in step:
                input_ids = ids.to(compute.device)
                with compute.autocast():
                    loss = model(input_ids=input_ids, labels=input_ids).loss / len(step)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            timer.step(self.batch_size * tokens)
        return timer.values()


if __name__ == "__main__":
    main()
