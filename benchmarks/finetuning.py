"""Fine-tuning throughput: colakit beside PEFT with transformers' Trainer, in turn, in one run.

    python benchmarks/finetuning.py [--base FOLDER] [--data CORPUS] [--steps N] [--repeats N] [--out FILE]

Without `--base` the rival and colakit get a GPT-2 small of true size with random weights. Both see the same
sentences, rank, targets and batch size; what differs is the program. Every figure is a median over repeats;
the ratio is what counts, since machines differ and are shared.

Rows: the Trainer as it comes (fp32, padded to the batch's longest), the Trainer with the best flags it has
(bf16, grouped by length), colakit as it comes, and the ceiling: the step's matrix products with the frozen
weights, forward and backward, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colakit.data.batches import Examples, micro_batches, plan_epoch
from colakit.data.corpora import load_corpus
from colakit.data.tokens import Tokens
from colakit.engine.device import keep_freed_memory, resolve_compute
from colakit.engine.objectives import classification
from colakit.engine.runs import package_version
from colakit.engine.training import StepBatch, train
from colakit.interop.gpt2 import load_gpt, save_gpt
from colakit.models.gpt import GPT, GPTConfig
from colakit.models.lora import LoRAConfig, inject, parameter_groups, train_also
from colakit.toy import ToyGrammar

RANK, ALPHA = 8, 16
OURS, CEILING = "colakit, as it comes", "its matrix products alone"
TARGETS = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")


def main() -> None:
    """Measure all rows, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a GPT-2; default: GPT-2 small, random weights")
    parser.add_argument("--data", type=Path, help="corpus; default: sentences of the toy grammar")
    parser.add_argument("--steps", type=int, default=6, help="measured steps a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetuning.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as the commands do; it helps the rival as well
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.base or random_gpt2_small(Path(scratch) / "base")
        examples = read_examples(arguments.data, base)
        results = measure(base, examples, arguments, Path(scratch))
    report(results, arguments, examples)


def random_gpt2_small(folder: Path) -> Path:
    """Write a GPT-2 small with random weights."""
    torch.manual_seed(0)
    save_gpt(GPT(GPTConfig()), folder)
    return folder


def read_examples(data: Path | None, base: Path) -> Examples:
    """Return random tokens and labels with about the lengths of real sentences: speed does not read."""
    if data is not None:
        sentences = load_corpus(data).split("train").sentences
    else:
        grammar = ToyGrammar(0)
        sentences = tuple(grammar.acceptable() for _ in range(4000))
    vocabulary = load_gpt(base).config.vocab_size
    lengths = np.array([max(1, round(1.15 * len(s.split())) + 1) for s in sentences])  # tokens, near enough
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary, size=lengths.sum()).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    return Examples(tokens, generator.integers(0, 2, size=len(lengths)))


def measure(
    base: Path, examples: Examples, arguments: argparse.Namespace, scratch: Path
) -> dict[str, list[float]]:
    """Return sentences a second of every row and repeat, the rows in turn."""
    rows: dict[str, Callable[[], float]] = {
        "PEFT + Trainer, as it comes": lambda: run_trainer(base, examples, arguments, scratch, best=False),
        "PEFT + Trainer, best flags": lambda: run_trainer(base, examples, arguments, scratch, best=True),
        OURS: lambda: run_colakit(base, examples, arguments),
        CEILING: lambda: run_products(base, examples, arguments),
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(arguments.repeats):
        for name, run in rows.items():
            found[name].append(run())
            print(
                f"{repeat + 1}/{arguments.repeats} {name}: {found[name][-1]:.1f} sentences/s", file=sys.stderr
            )
    return found


def run_colakit(base: Path, examples: Examples, arguments: argparse.Namespace) -> float:
    """Return colakit's sentences a second, after one warm-up step."""
    compute = resolve_compute("auto", "auto")
    model = load_gpt(base).classifier(2)
    inject(model, LoRAConfig(rank=RANK, alpha=ALPHA, target_modules=TARGETS))
    train_also(model, layernorm=False, head=True)
    compute.place(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, lr=1e-4, weight_decay=0.0, lr_ratio=1.0), fused=True
    )

    def batches() -> Iterator[StepBatch]:
        plan = plan_epoch(examples.tokens.lengths, arguments.batch_size, 0, 0)
        for position, index in enumerate(plan[: arguments.steps + 1]):
            yield StepBatch(
                micro_batches(examples, index, arguments.batch_size), len(index), 0, f"{position}"
            )

    clock = Clock()
    for report in train(
        model.train(), batches(), classification, optimizer, lr_at=lambda step: 1.0, compute=compute
    ):
        clock.step(report.count)
    return clock.rate()


def run_products(base: Path, examples: Examples, arguments: argparse.Namespace) -> float:
    """Return sentences a second if a step were its products with the frozen weights: x·Wᵀ and g·W."""
    compute = resolve_compute("auto", "auto")
    body = compute.place(load_gpt(base).requires_grad_(False)).transformer
    weights = [m.weight for m in body.h.modules() if isinstance(m, torch.nn.Linear)]
    plan = plan_epoch(examples.tokens.lengths, arguments.batch_size, 0, 0)[: arguments.steps + 1]
    rows = [len(index) * int(examples.tokens.lengths[index].max()) for index in plan]  # padding too
    inputs = {
        size: torch.randn(max(rows), size, device=compute.device).to(weights[0].dtype)
        for size in {side for weight in weights for side in weight.shape}
    }
    clock = Clock()
    for index, count in zip(plan, rows, strict=True):
        for weight in weights:
            inputs[weight.shape[1]][:count] @ weight.t()
            inputs[weight.shape[0]][:count] @ weight
        clock.step(len(index))
    return clock.rate()


def run_trainer(
    base: Path, examples: Examples, arguments: argparse.Namespace, scratch: Path, *, best: bool
) -> float:
    """Return the Trainer's sentences a second, after one warm-up step."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2ForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=0)
    peft_config = LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), fan_in_fan_out=True
    )
    tuned = get_peft_model(model, peft_config)
    rows = [
        {"input_ids": examples.tokens.sentence(i).tolist(), "labels": int(examples.labels[i])}
        for i in range(len(examples))
    ]
    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(arguments.batch_size)

    flags: dict[str, Any] = {"bf16": True, "train_sampling_strategy": "group_by_length"} if best else {}
    settings = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=arguments.batch_size,
        max_steps=arguments.steps + 1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        **flags,
    )
    Trainer(tuned, settings, train_dataset=rows, data_collator=collate, callbacks=[Ticks()]).train()
    return clock.rate()


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the batch's longest, as `DataCollatorWithPadding` does by default."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] for row in rows]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


class Clock:
    """Times steps after the first."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.count = 0
        self.last = 0.0

    def step(self, count: int) -> None:
        """Note that a step over `count` sentences has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.last = time.perf_counter()
        if self.started is None:
            self.started = self.last
        else:
            self.count += count

    def rate(self) -> float:
        """Return sentences a second."""
        return self.count / (self.last - (self.started or self.last))


def report(results: dict[str, list[float]], arguments: argparse.Namespace, examples: Examples) -> None:
    """Print the table and write the JSON file."""
    medians = {name: statistics.median(rates) for name, rates in results.items()}
    ours = medians[OURS]
    print(f"{'':32}{'sentences/s':>12}{'colakit is':>14}")
    for name, rate in medians.items():
        print(f"{name:32}{rate:>12.1f}{f'{ours / rate:.2f} x':>14}")
    print(f"share of the matrix products' ceiling: {ours / medians[CEILING]:.0%}")
    content = {
        "sentences_per_second": results,
        "ratios": {name: ours / rate for name, rate in medians.items()},
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "mean_tokens": float(examples.tokens.lengths.mean()),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "compute": str(resolve_compute("auto", "auto")),
        "versions": {name: package_version(name) for name in ("torch", "transformers", "peft", "accelerate")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
