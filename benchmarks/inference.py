"""Labelling sentences: a student beside the teacher it stands for, from one sentence to many.

    python benchmarks/inference.py [--shape gpt2|small] [--data CORPUS] [--sentences N] [--out FILE]

Both have random weights: speed does not ask what they learnt. From text to label, inside the process, the
student in numpy, as `colakit predict` takes it, and in torch; and a file of sentences through that command,
in a process of its own, read and written. The teacher is a GPT-2 with a LoRA adapter, in colakit and, in its
ordinary form, in transformers.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import Figure, Table, Way, colakit, compare, in_turn, precision_of, report, run_process
from worlds import SHAPES, World, make_world

from colakit.data.corpora import COLA_LABELS
from colakit.data.tokenizer import SentenceTokenizer
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.predictor import Predictor
from colakit.models.lora import LoRAConfig, inject
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.runtime.device import resolve_compute
from colakit.storage.gpt2 import load_gpt

STUDENT, TEACHER, PLAIN = "student", "teacher, colakit", "teacher, transformers"
STUDENT_TORCH, STUDENT_BF16 = "student, with torch", "student, with torch, bf16"
STUDENTS = {STUDENT, STUDENT_TORCH, STUDENT_BF16}
TEACHER_FP32 = "teacher, colakit, fp32"
MEDIAN = Figure("p50_ms", "ms, median")
TAIL = Figure("p99_ms", "ms, 99th percentile")
RATE = Figure("sentences_per_second", "sentences/s", more_is_better=True)
BATCH_SIZE = 128  # of transformers, and of what warms up

Label = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Load:
    """How much is asked.

    Attributes:
        singles: sentences labelled one at a time.
        teacher, student: sentences labelled together; the student's may be as many as it likes.
        lines: of the file that `colakit predict` labels.
    """

    singles: int = 200
    teacher: int = 512
    student: int = 16384
    lines: int = 50_000


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="of the teacher")
    parser.add_argument("--data", type=Path, help="corpus; default: the built-in one")
    parser.add_argument("--embedding-size", type=int, default=RNNConfig.embedding_size, help="of the student")
    parser.add_argument("--hidden-size", type=int, default=RNNConfig.hidden_size, help="of the student")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lines", type=int, default=Load.lines, help="labelled by `colakit predict`")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        world = make_world(Path(name), arguments.shape, data=arguments.data)
        sizes = {"embedding_size": arguments.embedding_size, "hidden_size": arguments.hidden_size}
        tables = Inference(world, Path(name), Load(lines=arguments.lines), **sizes).tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


class Inference:
    """A student, as it comes but for `sizes`, and a teacher of one world, ready to label."""

    def __init__(self, world: World, scratch: Path, load: Load, **sizes: int) -> None:
        self.world, self.scratch, self.load = world, scratch, load
        self.student_file = write_student(world.base, scratch / "student.pt", **sizes)
        compute = resolve_compute("auto", "auto")
        self.labellers: dict[str, Label] = {
            STUDENT: StudentPredictor(self.student_file),
            STUDENT_TORCH: Predictor(student(world.base, **sizes), compute),
            TEACHER: Predictor(teacher(world.base), compute),
        }
        if precision_of() == "bf16":
            self.labellers[STUDENT_BF16] = Predictor(
                student(world.base, **sizes), compute, student_dtype=torch.bfloat16
            )
            fp32 = resolve_compute("auto", "fp32")
            self.labellers[TEACHER_FP32] = Predictor(teacher(world.base), fp32)
        self.labellers[PLAIN] = Transformers(world.base)

    def tables(self, repeats: int) -> list[Table]:
        """Measure single sentences, many, and whole commands."""
        one, many = self.ways(self.one_by_one), self.ways(self.together)
        singles, together = in_turn(one, repeats), in_turn(many, repeats)
        file = [Way("colakit predict, student, a file", "fp32", self.predict)]
        aims = {"ours": "the student", "aims": "student p50 below 1 ms"}
        return [
            compare("One sentence at a time, from text to label", one, singles, MEDIAN, **aims),
            compare("One sentence at a time, from text to label", one, singles, TAIL, ours=aims["ours"]),
            compare(
                "Many sentences, from text to label",
                many,
                together,
                RATE,
                ours=aims["ours"],
                aims="100 times the teacher's",
            ),
            compare(
                f"`colakit predict` of {self.load.lines:,} lines, the whole command",
                file,
                in_turn(file, min(repeats, 3)),
                RATE,
            ),
        ]

    def ways(self, measure: Callable[[str], dict[str, float]]) -> list[Way]:
        """Return the labellers, each measured so; a teacher stands beside the student of its precision."""
        in_bf16 = {TEACHER, STUDENT_BF16} if precision_of() == "bf16" else set()
        return [
            Way(
                name,
                "bf16" if name in in_bf16 else "fp32",
                lambda name=name: measure(name),
                None if name in STUDENTS else STUDENT_BF16 if name in in_bf16 else STUDENT,
            )
            for name in self.labellers
        ]

    def one_by_one(self, name: str) -> dict[str, float]:
        """Label single sentences; the first few are not counted."""
        label, times = self.labellers[name], []
        for sentence in self.sentences(self.load.singles + 5):
            began = time.perf_counter()
            label([sentence])
            times.append(1000 * (time.perf_counter() - began))
        p50, p99 = np.percentile(times[5:], [50, 99])
        return {MEDIAN.key: float(p50), TAIL.key: float(p99)}

    def together(self, name: str) -> dict[str, float]:
        """Label many sentences."""
        sentences = self.sentences(self.load.student if name in STUDENTS else self.load.teacher)
        self.labellers[name](sentences[:BATCH_SIZE])
        began = time.perf_counter()
        self.labellers[name](sentences)
        return {RATE.key: len(sentences) / (time.perf_counter() - began)}

    def predict(self) -> dict[str, float]:
        """Label a file in a process of its own."""
        text, out = self.scratch / "sentences.txt", self.scratch / "predicted"
        text.write_text("".join(f"{line}\n" for line in self.sentences(self.load.lines)), encoding="utf-8")
        command = colakit("predict", "--model", self.student_file, text, "--out", out, "--quiet")
        found = run_process(command, cache=self.scratch / "cache")
        return {RATE.key: self.load.lines / found["seconds"], **found}

    def sentences(self, count: int) -> list[str]:
        """Return the corpus's sentences, from the start again where it has not enough."""
        return list(itertools.islice(itertools.cycle(self.world.sentences), count))


def teacher(base: Path) -> SentenceClassifier:
    """Return a classifier on the base, with an adapter."""
    lora = LoRAConfig(rank=8, alpha=16)
    model = load_gpt(base).classifier(len(COLA_LABELS))
    inject(model, lora)
    return SentenceClassifier(model, SentenceTokenizer.from_folder(base), COLA_LABELS, 1024, lora=lora)


def student(base: Path, **sizes: int) -> SentenceClassifier:
    """Return a student as it comes but for `sizes`, which reads the base's tokens."""
    tokenizer = SentenceTokenizer.from_folder(base)
    torch.manual_seed(0)
    model = DistilRNN(RNNConfig(tokenizer.vocab_size, **sizes))  # type: ignore[arg-type]
    return SentenceClassifier(model, tokenizer, COLA_LABELS, 1024)


def write_student(base: Path, path: Path, **sizes: int) -> Path:
    """Write a student's checkpoint."""
    student(base, **sizes).save(path)
    return path


class Transformers:
    """The teacher in transformers, fp32: sentences in their order, batches padded to their longest."""

    def __init__(self, base: Path) -> None:
        from rivals import quiet, tuned_model
        from transformers import AutoTokenizer

        quiet()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = resolve_compute("auto", "auto").device
        self.model = tuned_model(base, pad_token_id=self.tokenizer.eos_token_id).to(self.device).eval()

    def __call__(self, sentences: Sequence[str]) -> list[int]:
        """Return the likeliest labels."""
        found: list[int] = []
        with torch.inference_mode():
            for start in range(0, len(sentences), BATCH_SIZE):
                texts = list(sentences[start : start + BATCH_SIZE])
                batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
                found += self.model(**batch).logits.argmax(dim=1).tolist()
        return found


if __name__ == "__main__":
    main()
