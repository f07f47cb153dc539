"""Throughput of fine-tuning steps: colakit and PEFT with transformers' Trainer.

    python benchmarks/finetuning.py [--base FOLDER] [--data CORPUS] [--steps N] [--repeats N] [--out FILE]

The default base is a GPT-2 small with random weights. Rank, target modules and batch size are the same for
all. Each program groups its batches in its own way; the measured batches are spread over the epoch's sequence
lengths, so that a few steps read about as many tokens a sentence as an epoch does (reported in a second
table).

Every variant runs in processes of its own, because colakit changes process-wide settings (memory allocation,
denormal numbers).

Variants: the Trainer with its defaults (fp32, padded to the longest sentence); in every available precision,
the Trainer grouping by length (its best flags), colakit, and a bound: the matrix products of a step with the
frozen weights and nothing else (in the last block, mostly those of last tokens). The reference of a row is
colakit in the same precision; that of the Trainer's defaults is colakit's defaults.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import (
    DEVICE_MEMORY,
    SENTENCE_RATE,
    Metric,
    StepTimer,
    Table,
    Variant,
    available_precisions,
    compare,
    make_parser,
    report,
    run_alternating,
    run_in_new_process,
)
from numpy.typing import NDArray
from peft_trainer import ALPHA, RANK, collate, lora_model, silence, training_arguments
from workspaces import SHAPES, random_examples, write_random_gpt2

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.kernels.attention import aligned_ends
from colakit.kernels.matmul import product
from colakit.models.lora import ALL_LINEAR, LoRAConfig, inject, train_modules
from colakit.runtime.device import prepare_cpu, resolve_compute
from colakit.storage.gpt2 import load_gpt
from colakit.training.cuda_graphs import StepGraphs
from colakit.training.loop import StepBatch, train
from colakit.training.objectives import classification
from colakit.training.optimizers import tuning_optimizer
from colakit.utils.array_cache import default_cache

REFERENCE = "colakit, defaults"
Plan = list[NDArray[np.int64]]
"""Indices of the sentences of each batch."""
TOKENS = Metric("tokens_per_sentence", "tokens a sentence", higher_is_better=True)
TARGET = (  # 8,551 sentences of CoLA in 0.6 s are 14,250 a second
    "15 times the Trainer's defaults, 3 times its best flags, 0.55 times the products, with bf16 matrix "
    "units; 1.5 times its best flags in fp32; on an H100, 8 times the best flags and 14,250 sentences/s "
    "in steps of 32"
)


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = make_parser(__doc__, "finetuning", data=None, steps=6, batch_size=32, repeats=3)
    parser.add_argument(
        "--base", type=Path, help="folder or GGUF file of a base; default: GPT-2 small, random weights"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.base or write_random_gpt2(Path(scratch) / "base", SHAPES["gpt2"])
        examples = random_examples(arguments.data, load_gpt(base).config.vocab_size)
        benchmark = Finetuning(base, examples, arguments.steps, arguments.batch_size, Path(scratch))
        tables = benchmark.tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


@dataclass(frozen=True)
class Finetuning:
    """Fine-tuning steps of one batch size on one base.

    Attributes:
        steps: number of measured steps; `steps + 1` warm-up steps come first.
        scratch: folder for the Trainer's output.
    """

    base: Path
    examples: Examples
    steps: int
    batch_size: int
    scratch: Path
    name: str = "Fine-tuning"

    def tables(self, repeats: int) -> list[Table]:
        """Return the tables of sentences a second, tokens a sentence and, on a GPU, memory."""
        variants = self.variants()
        measurements = run_alternating(variants, repeats)
        title = f"{self.name}, steps of {self.batch_size} sentences"
        make = partial(compare, variants=variants, measurements=measurements, reference=REFERENCE)
        tables = [
            make(title, metric=SENTENCE_RATE, target=TARGET),
            make(f"{title}: their length", metric=TOKENS),
        ]
        if torch.cuda.is_available():
            tables.append(make(f"{title}: memory", metric=DEVICE_MEMORY))
        return tables

    def variants(self) -> list[Variant]:
        """Return the Trainer with its defaults, and the other variants in each precision."""
        first, *others = available_precisions()
        defaults = partial(run_in_new_process, self.trainer, None)
        variants = [Variant("PEFT + Trainer, defaults", "fp32", defaults, REFERENCE)]
        for precision in (first, *others):
            colakit = REFERENCE if precision == first else f"colakit, {precision}"
            works = (
                (f"PEFT + Trainer, {precision}, grouped by length", self.trainer, colakit),
                (colakit, self.colakit, None if colakit == REFERENCE else REFERENCE),
                (f"matrix products only, {precision}", self.products, colakit),
            )
            variants += [
                Variant(name, precision, partial(run_in_new_process, work, precision), reference)
                for name, work, reference in works
            ]
        if resolve_compute("auto", "auto").device.type == "cpu":
            int8 = partial(run_in_new_process, self.colakit, "int8")
            variants.append(Variant("colakit, int8", "int8", int8, REFERENCE))
        return variants

    def colakit(self, precision: str) -> dict[str, float]:
        """Train with colakit's loop and the process settings of its commands."""
        prepare_cpu()
        compute = resolve_compute("auto", precision).with_kernels("auto", default_cache() / "native")
        model = load_gpt(self.base).classifier(2)
        inject(model, LoRAConfig(rank=RANK, alpha=ALPHA, target_modules=(ALL_LINEAR,)))
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
        if graphs is not None:  # CUDA graphs are recorded in the first epoch
            for _ in learn(self.batches(), classification, optimizer):
                pass
        timer = StepTimer(warm_up=self.steps + 1)
        for step in learn(self.batches(), classification, optimizer):
            timer.step(step.count)
        if graphs is not None and graphs.failure is not None:
            raise SystemExit(f"CUDA graphs failed: {graphs.failure}")
        return {**timer.values(), **self.tokens_per_sentence(self.colakit_plan())}

    def batches(self) -> Iterator[StepBatch]:
        """Yield colakit's batches."""
        for position, index in enumerate(self.colakit_plan()):
            yield StepBatch(
                micro_batches(self.examples, index, self.batch_size), len(index), 0, f"{position}"
            )

    def colakit_plan(self) -> Plan:
        """Return colakit's batches."""
        return self.spread(plan_epoch(self.examples.tokens.lengths, self.batch_size, 0, 0))

    def trainer_plan(self, best: str | None) -> Plan:
        """Return the Trainer's batches: shuffled, or grouped by its own sampler."""
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
        """Return warm-up batches, then `steps` batches spread over the epoch's sequence lengths.

        The epoch's batches are sorted by length and split into `steps` parts, and one is drawn from each. Of
        1,000 such draws, the one with the mean length nearest to the corpus's is taken. The warm-up is the
        longest batch and the same draw once, so that all memory is allocated before the measured steps.
        """
        whole = np.array([index for index in plan if len(index) == self.batch_size])
        tokens = self.examples.tokens.lengths[whole].sum(axis=1)
        by_length = np.argsort(tokens)
        generator = np.random.default_rng(0)
        parts = np.array_split(by_length, self.steps)
        draws = np.stack([generator.choice(part, size=1000) for part in parts], axis=1)
        target = self.batch_size * self.examples.tokens.lengths.mean()
        nearest = np.abs(tokens[draws].mean(axis=1) - target).argmin()
        drawn = list(whole[generator.permutation(draws[nearest])])
        return [whole[by_length[-1]], *drawn, *drawn]

    def tokens_per_sentence(self, plan: Plan) -> dict[str, float]:
        """Return the mean number of tokens without padding in the measured steps."""
        lengths = self.examples.tokens.lengths
        return {TOKENS.key: float(lengths[np.concatenate(plan[-self.steps :])].mean())}

    def products(self, precision: str) -> dict[str, float]:
        """Compute only a step's products with the frozen weights, x·Wᵀ and g·W, with colakit's settings."""
        prepare_cpu()
        compute = resolve_compute("auto", precision)
        body = compute.place(load_gpt(self.base).requires_grad_(False)).body
        layers = {n: m.weight for n, m in body.blocks.named_modules() if isinstance(m, torch.nn.Linear)}
        inputs_of_attention = ("c_attn", "q_proj", "k_proj", "v_proj")
        last_block = f"{len(body.blocks) - 1}."
        weights = [
            # (weight, whether only last tokens are multiplied, whether the input needs a gradient)
            (
                weight,
                name.startswith(last_block) and not name.endswith(inputs_of_attention),
                not (name.startswith("0.") and name.endswith(inputs_of_attention)),
            )
            for name, weight in layers.items()
        ]
        plan = self.colakit_plan()
        ends = (torch.from_numpy(self.examples.tokens.lengths[index] - 1) for index in plan)
        tokens = [int((aligned_ends(last, int(last.max()) + 1) + 1).sum()) for last in ends]
        inputs = {
            size: torch.randn(max(tokens), size, device=compute.device).to(compute.dtype)
            for size in {side for weight in layers.values() for side in weight.shape}
        }
        timer = StepTimer(warm_up=self.steps + 1)
        for index, count in zip(plan, tokens, strict=True):
            for weight, last_only, has_backward in weights:
                rows = len(index) if last_only else count
                product(inputs[weight.shape[1]][:rows], weight)
                if has_backward:
                    product(inputs[weight.shape[0]][:rows], weight.t())
            timer.step(len(index))
        return {**timer.values(), **self.tokens_per_sentence(plan)}

    def trainer(self, best: str | None) -> dict[str, float]:
        """Train with PEFT and the Trainer; `best` as in `peft_trainer.training_arguments`."""
        from transformers import PrinterCallback, Trainer, TrainerCallback

        silence()
        timer = StepTimer(warm_up=self.steps + 1)
        batch_size, plan = self.batch_size, self.trainer_plan(best)

        class TimerCallback(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                timer.step(batch_size)

        class SequentialTrainer(Trainer):
            def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
                return torch.utils.data.SequentialSampler(rows)

        tokens, labels = self.examples.tokens, self.examples.labels.tolist()
        rows = [{"input_ids": tokens.sentence(i).tolist(), "labels": labels[i]} for i in np.concatenate(plan)]
        trainer = SequentialTrainer(
            lora_model(self.base),
            training_arguments(self.scratch / "trainer", batch_size, best, max_steps=len(plan)),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[TimerCallback()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {**timer.values(), **self.tokens_per_sentence(plan)}


if __name__ == "__main__":
    main()
