"""Fine-tuning throughput: colakit beside PEFT with transformers' Trainer, in turn, in one run.

    python benchmarks/finetuning.py [--base FOLDER] [--data CORPUS] [--steps N] [--repeats N] [--out FILE]

Without `--base` the rival and colakit get a GPT-2 small of true size with random weights. Rank, targets and
batch size are the same; what differs is the program. Each plans an epoch in its own way, and is measured on
batches from all parts of it, from the shortest to the longest, so that a few steps read as many tokens a
sentence as an epoch does; a second table says how many each read.

Each row runs in processes of its own, so the Trainer has what it has with its users: colakit's settings for
memory and denormal numbers are colakit's alone.

Rows: the Trainer as it comes (fp32, padded to the batch's longest), the Trainer grouping by length in every
precision that the hardware has (the best that its flags reach), colakit in each, and the ceiling of each:
the step's matrix products with the frozen weights, forward and backward, as far as a step needs them (of the
last block's, most are of last tokens alone), and nothing else. Rows stand beside ours of the same precision,
the Trainer as it comes beside ours as it comes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Figure, Table, Way, compare, in_own_process, in_turn, precisions, report
from rivals import ALPHA, RANK, TARGETS, collate, quiet, training_arguments, tuned_model
from support.toy import ToyGrammar

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.data.corpora import load_corpus
from colakit.data.tokens import Tokens
from colakit.kernels.attention import aligned_ends
from colakit.kernels.matmul import product
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.storage.gpt2 import load_gpt, save_gpt
from colakit.training.cuda_graphs import StepGraphs
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import classification
from colakit.training.optimizers import tuning_optimizer
from colakit.utils.array_cache import default_cache

OURS = "colakit, as it comes"
Plan = list[np.ndarray[Any, np.dtype[np.int64]]]
RATE = Figure("sentences_per_second", "sentences/s", more_is_better=True)
READ = Figure("tokens_per_sentence", "tokens a sentence", more_is_better=True)
MEMORY = Figure("device_mib", "MiB of the device, at most")
AIMS = (  # 8,551 sentences of CoLA in 0.6 s are 14,250 a second
    "as it comes 15 times, best flags 3 times and 0.55 times the products, with bf16 matrix units; fp32 "
    "beside fp32 1.5 times; on an H100, best flags 8 times, and 14,250 sentences/s in steps of 32"
)


def main() -> None:
    """Measure all rows, print the table, and write it as JSON."""
    parser = step_parser((__doc__ or "").splitlines()[0], "finetuning", steps=6, batch_size=32)
    parser.add_argument("--base", type=Path, help="folder of a GPT-2; default: GPT-2 small, random weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.base or random_gpt2(Path(scratch) / "base")
        examples = read_examples(arguments.data, load_gpt(base).config.vocab_size)
        bench = Finetuning(base, examples, arguments.steps, arguments.batch_size, Path(scratch))
        tables = bench.tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


def step_parser(description: str, name: str, *, steps: int, batch_size: int) -> argparse.ArgumentParser:
    """Return the parser of a benchmark of training steps.

    Args:
        name: of the benchmark, for the file of its results.
        steps, batch_size: by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="corpus; default: sentences of the toy grammar")
    parser.add_argument("--steps", type=int, default=steps, help="measured steps a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser


def random_gpt2(folder: Path, config: GPTConfig | None = None) -> Path:
    """Write a GPT-2 with random weights, by default small."""
    torch.manual_seed(0)
    save_gpt(GPT(config or GPTConfig()), folder)
    return folder


def read_examples(data: Path | None, vocab_size: int) -> Examples:
    """Return random tokens and labels with about the lengths of real sentences: speed does not read."""
    if data is not None:
        sentences = load_corpus(data).split("train").sentences
    else:
        grammar = ToyGrammar(0)
        sentences = tuple(grammar.acceptable() for _ in range(4000))
    lengths = np.array([max(1, round(1.15 * len(s.split())) + 1) for s in sentences])  # tokens, near enough
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocab_size, size=lengths.sum()).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    return Examples(tokens, generator.integers(0, 2, size=len(lengths)))


@dataclass(frozen=True)
class Finetuning:
    """Steps of one size on one base.

    Attributes:
        steps: measured, after as many and one that are not.
        scratch: folder for what the Trainer writes.
    """

    base: Path
    examples: Examples
    steps: int
    batch_size: int
    scratch: Path

    def tables(self, repeats: int) -> list[Table]:
        """Measure all ways in turn; return sentences a second, their length and, on a GPU, its memory."""
        ways = self.ways()
        found = in_turn(ways, repeats)
        title = f"Fine-tuning, steps of {self.batch_size} sentences"
        tables = [
            compare(title, ways, found, RATE, ours=OURS, aims=AIMS),
            compare(f"{title}: what they read", ways, found, READ, ours=OURS),
        ]
        if torch.cuda.is_available():
            tables.append(compare(f"{title}: memory", ways, found, MEMORY, ours=OURS))
        return tables

    def ways(self) -> list[Way]:
        """Return what is measured here."""
        usual, *other = precisions()
        found = [
            Way("PEFT + Trainer, as it comes", "fp32", partial(in_own_process, self.trainer, None), OURS)
        ]
        found += self.ways_in(usual, OURS)
        for precision in other:
            found += self.ways_in(precision, f"colakit, {precision}")
        return found

    def ways_in(self, precision: str, ours: str) -> list[Way]:
        """Return the ways of one precision, where colakit's is called `ours`."""
        return [
            Way(
                f"PEFT + Trainer, {precision}, grouped by length",
                precision,
                partial(in_own_process, self.trainer, precision),
                ours,
            ),
            Way(
                ours,
                precision,
                partial(in_own_process, self.colakit, precision),
                None if ours == OURS else OURS,
            ),
            Way(
                f"the matrix products alone, {precision}",
                precision,
                partial(in_own_process, self.products, precision),
                ours,
            ),
        ]

    def colakit(self, precision: str) -> dict[str, float]:
        """Train with colakit's loop, in a process prepared as its commands prepare theirs."""
        prepare_cpu()
        compute = resolve_compute("auto", precision).with_kernels("auto", default_cache() / "native")
        model = load_gpt(self.base).classifier(2)
        inject(model, LoRAConfig(rank=RANK, alpha=ALPHA, target_modules=TARGETS))
        train_modules(model, ("score",))
        compute.place(model)
        optimizer = tuning_optimizer(model, lr=1e-4, weight_decay=0.0, loraplus_lr_ratio=1.0)
        compute, graphs = compute.with_graphs("auto"), None
        if compute.graphs:
            trainable = [p for p in model.parameters() if p.requires_grad]
            widest = model.config.num_positions
            graphs = StepGraphs(trainable, compute.device, batch_size=self.batch_size, widest=widest)
        model.train()
        learn = partial(train, model, lr_at=lambda step: 1.0, compute=compute, graphs=graphs)
        if graphs is not None:  # which are recorded in a run's first epoch
            for _ in learn(self.batches(), classification, optimizer):
                pass
        clock = Clock(warm_up=self.steps + 1)
        for step in learn(self.batches(), classification, optimizer):
            clock.step(step.count)
        if graphs is not None and graphs.failure is not None:
            raise SystemExit(f"a step cannot be a CUDA graph here: {graphs.failure}")
        return {**clock.figures(), **self.tokens_per_sentence(self.plan())}

    def batches(self) -> Iterator[StepBatch]:
        """Yield colakit's batches."""
        for position, index in enumerate(self.plan()):
            yield StepBatch(
                micro_batches(self.examples, index, self.batch_size), len(index), 0, f"{position}"
            )

    def plan(self) -> Plan:
        """Return which sentences colakit's batches hold."""
        return self.spread(plan_epoch(self.examples.tokens.lengths, self.batch_size, 0, 0))

    def trainers_plan(self, best: str | None) -> Plan:
        """Return which sentences the Trainer's batches hold: shuffled, or grouped by its own sampler."""
        from transformers.trainer_pt_utils import LengthGroupedSampler

        lengths = self.examples.tokens.lengths
        order = np.random.default_rng(0).permutation(len(lengths))
        if best is not None:
            generator = torch.Generator().manual_seed(0)
            order = np.array(
                list(LengthGroupedSampler(self.batch_size, lengths=lengths.tolist(), generator=generator))
            )
        return self.spread(np.split(order, range(self.batch_size, len(order), self.batch_size)))

    def spread(self, plan: Plan) -> Plan:
        """Return an epoch's batches, one from each part of it by length, behind those that warm up.

        Those are the longest and the same ones once: they first touch the memory that is used again, as in
        all but an epoch's first steps. Of a thousand such draws it is the one whose sentences are nearest to
        the corpus's in length.
        """
        whole = np.array([index for index in plan if len(index) == self.batch_size])
        tokens = self.examples.tokens.lengths[whole].sum(axis=1)
        by_length = np.argsort(tokens)
        generator = np.random.default_rng(0)
        parts = np.array_split(by_length, self.steps)
        draws = np.stack([generator.choice(part, size=1000) for part in parts], axis=1)
        wanted = self.batch_size * self.examples.tokens.lengths.mean()
        nearest = np.abs(tokens[draws].mean(axis=1) - wanted).argmin()
        drawn = list(whole[generator.permutation(draws[nearest])])
        return [whole[by_length[-1]], *drawn, *drawn]

    def tokens_per_sentence(self, plan: Plan) -> dict[str, float]:
        """Return the real tokens of a sentence in the steps that are measured."""
        lengths = self.examples.tokens.lengths
        return {READ.key: float(lengths[np.concatenate(plan[-self.steps :])].mean())}

    def products(self, precision: str) -> dict[str, float]:
        """Work as if a step were its products with the frozen weights, x·Wᵀ and g·W, prepared as ours."""
        prepare_cpu()
        compute = resolve_compute("auto", precision)
        body = compute.place(load_gpt(self.base).requires_grad_(False)).transformer
        layers = {n: m.weight for n, m in body.h.named_modules() if isinstance(m, torch.nn.Linear)}
        first, last = "0.attn.c_attn", f"{len(body.h) - 1}."
        weights = [
            # whether only last tokens are multiplied, and whether there is a gradient to be handed on
            (weight, name.startswith(last) and not name.endswith("c_attn"), name != first)
            for name, weight in layers.items()
        ]
        plan = self.plan()
        ends = (torch.from_numpy(self.examples.tokens.lengths[index] - 1) for index in plan)
        tokens = [int((aligned_ends(last, int(last.max()) + 1) + 1).sum()) for last in ends]  # ours
        inputs = {
            size: torch.randn(max(tokens), size, device=compute.device).to(compute.dtype)
            for size in {side for weight in layers.values() for side in weight.shape}
        }
        clock = Clock(warm_up=self.steps + 1)
        for index, count in zip(plan, tokens, strict=True):
            for weight, last_alone, has_backward in weights:
                rows = len(index) if last_alone else count
                product(inputs[weight.shape[1]][:rows], weight)
                if has_backward:
                    product(inputs[weight.shape[0]][:rows], weight.t())
            clock.step(len(index))
        return {**clock.figures(), **self.tokens_per_sentence(plan)}

    def trainer(self, best: str | None) -> dict[str, float]:
        """Train with PEFT and the Trainer; `best` as in `rivals.training_arguments`."""
        from transformers import PrinterCallback, Trainer, TrainerCallback

        quiet()
        clock = Clock(warm_up=self.steps + 1)
        batch_size, plan = self.batch_size, self.trainers_plan(best)

        class Ticks(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.step(batch_size)

        class InOrder(Trainer):
            def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
                return torch.utils.data.SequentialSampler(rows)

        tokens, labels = self.examples.tokens, self.examples.labels.tolist()
        rows = [{"input_ids": tokens.sentence(i).tolist(), "labels": labels[i]} for i in np.concatenate(plan)]
        trainer = InOrder(
            tuned_model(self.base),
            training_arguments(self.scratch / "trainer", batch_size, best, max_steps=len(plan)),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[Ticks()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {**clock.figures(), **self.tokens_per_sentence(plan)}


class Clock:
    """Times steps after the first `warm_up`, and asks a GPU for its peak memory."""

    def __init__(
        self, rate: Figure = RATE, warm_up: int = 1, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.rate = rate
        self.warm_up = warm_up
        self.now = now
        self.started: float | None = None
        self.count = 0
        self.last = 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self, count: int) -> None:
        """Note that a step over `count` sentences or tokens has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.last = self.now()
        self.warm_up -= 1
        if self.warm_up == 0:
            self.started = self.last
        elif self.warm_up < 0:
            self.count += count

    def figures(self) -> dict[str, float]:
        """Return what was counted a second and, on a GPU, the most memory held, in MiB."""
        found = {self.rate.key: self.count / (self.last - (self.started or self.last))}
        if torch.cuda.is_available():
            found[MEMORY.key] = torch.cuda.max_memory_allocated() / 2**20
        return found


if __name__ == "__main__":
    main()
