"""Speed of labelling: a student and its teacher, from one sentence to many.

    python benchmarks/inference.py [--shape gpt2|small] [--data CORPUS] [--sentences N] [--out FILE]

Both have random weights. The student is measured in numpy (as `colakit predict` runs it), in torch and in
ONNX Runtime; the teacher, a GPT-2 with a LoRA adapter, in colakit and in transformers. Times run from text to
label inside one process. A last table times `colakit predict` of a whole file in a process of its own.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import (
    SENTENCE_RATE,
    Metric,
    Table,
    Variant,
    auto_precision,
    colakit_command,
    compare,
    make_parser,
    measure,
    report,
    run_alternating,
    run_command,
)
from workspaces import SHAPES, Workspace, make_workspace, random_student, save_random_student

from colakit.data.corpora import COLA_LABELS
from colakit.data.tokenizer import SentenceTokenizer
from colakit.export.files import write_common, write_onnx, write_quantized
from colakit.export.prepare import prepare
from colakit.export.quantize import DYNAMIC
from colakit.inference.classifier import SentenceClassifier
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.inference.onnx_predictor import OnnxPredictor
from colakit.inference.predictor import Predictor
from colakit.models.lora import LoRAConfig, inject
from colakit.models.rnn.config import RNNConfig
from colakit.runtime.device import resolve_compute
from colakit.storage.gpt2 import load_gpt
from colakit.storage.model_file import STUDENT_NAME, write_companion
from colakit.utils.array_cache import default_cache

STUDENT, STUDENT_TORCH, STUDENT_BF16 = "student", "student, with torch", "student, with torch, bf16"
STUDENT_ONNX, STUDENT_INT8 = "student, ONNX Runtime", "student, ONNX Runtime, int8"
STUDENTS = {STUDENT, STUDENT_TORCH, STUDENT_BF16, STUDENT_ONNX, STUDENT_INT8}
TEACHER, TEACHER_FP32 = "teacher, colakit", "teacher, colakit, fp32"
TEACHER_INT8, TEACHER_TRANSFORMERS = "teacher, colakit, int8", "teacher, transformers"
IN_INT8 = {STUDENT_INT8, TEACHER_INT8}
MEDIAN = Metric("p50_ms", "ms, median")
P99 = Metric("p99_ms", "ms, 99th percentile")
MEDIAN_CPU = Metric("p50_cpu_ms", "ms of CPU time, median")
CPU_RATE = Metric("sentences_per_cpu_second", "sentences per CPU second", higher_is_better=True)
SIZE = Metric("megabytes", "MB")
BATCH_SIZE = 128  # of transformers, and of the warm-up
WARM_UP = 5  # single sentences that are not measured

Labeller = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Load:
    """Numbers of sentences.

    Attributes:
        singles: labelled one at a time.
        teacher, student: labelled in one call.
        lines: in the file for `colakit predict`.
    """

    singles: int = 200
    teacher: int = 512
    student: int = 16384
    lines: int = 50_000


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = make_parser(__doc__, "inference", data=None, repeats=5)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="size of the teacher")
    parser.add_argument("--embedding-size", type=int, default=RNNConfig.embedding_size, help="of the student")
    parser.add_argument("--hidden-size", type=int, default=RNNConfig.hidden_size, help="of the student")
    parser.add_argument("--lines", type=int, default=Load.lines, help="labelled by `colakit predict`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        workspace = make_workspace(Path(name), arguments.shape, data=arguments.data)
        sizes = {"embedding_size": arguments.embedding_size, "hidden_size": arguments.hidden_size}
        benchmark = Inference(workspace, Path(name), Load(lines=arguments.lines), **sizes)
        tables = benchmark.tables(arguments.repeats)
    report(tables, vars(arguments), arguments.out)


class Inference:
    """A student and a teacher, loaded and ready to label.

    Args:
        sizes: of the student, other than its defaults.
    """

    def __init__(self, workspace: Workspace, scratch: Path, load: Load, **sizes: int) -> None:
        self.workspace, self.scratch, self.load = workspace, scratch, load
        base, compute = workspace.base, resolve_compute("auto", "auto")
        self.student = save_random_student(base, scratch / "student", **sizes)
        self.onnx_files = onnx_files(random_student(base, **sizes), scratch / "exported")
        self.labellers: dict[str, Labeller] = {
            STUDENT: StudentPredictor(self.student),
            STUDENT_TORCH: Predictor(random_student(base, **sizes), compute),
            **{name: OnnxPredictor(path) for name, path in self.onnx_files.items()},
            TEACHER: Predictor(random_teacher(base), compute),
        }
        if auto_precision() == "bf16":
            student = random_student(base, **sizes)
            self.labellers[STUDENT_BF16] = Predictor(student, compute, student_dtype=torch.bfloat16)
            self.labellers[TEACHER_FP32] = Predictor(random_teacher(base), resolve_compute("auto", "fp32"))
        if compute.device.type == "cpu":
            int8 = resolve_compute("cpu", "int8").with_kernels("auto", default_cache() / "native")
            self.labellers[TEACHER_INT8] = Predictor(random_teacher(base), int8)
        self.labellers[TEACHER_TRANSFORMERS] = TransformersTeacher(base)

    def tables(self, repeats: int) -> list[Table]:
        """Return the tables of single sentences, many sentences, and the whole command."""
        single, many = self.variants(self.label_singly), self.variants(self.label_together)
        latencies, rates = run_alternating(single, repeats), run_alternating(many, repeats)
        files = [
            Variant(name, "int8" if name in IN_INT8 else "fp32", partial(self.file_size, name))
            for name in (STUDENT, *self.onnx_files)
        ]
        command = [Variant("colakit predict, student, a file", "fp32", self.predict)]
        one_title = "One sentence at a time, from text to label"
        many_title, target = "Many sentences, from text to label", "100 times the teacher's rate"
        command_title = f"`colakit predict` of {self.load.lines:,} lines, the whole command"
        student = partial(compare, reference="the student")
        return [
            student(one_title, single, latencies, MEDIAN, target="student p50 below 1 ms"),
            student(one_title, single, latencies, P99),
            student(one_title, single, latencies, MEDIAN_CPU),
            student(many_title, many, rates, SENTENCE_RATE, target=target),
            student(many_title, many, rates, CPU_RATE),
            measure("The student's file", files, 1, SIZE),
            measure(command_title, command, min(repeats, 3), SENTENCE_RATE),
        ]

    def variants(self, measure: Callable[[str], dict[str, float]]) -> list[Variant]:
        """Return a variant for each labeller; a teacher's reference is the student of its precision."""
        in_bf16 = {TEACHER, STUDENT_BF16} if auto_precision() == "bf16" else set()
        precisions = {**dict.fromkeys(IN_INT8, "int8"), **dict.fromkeys(in_bf16, "bf16")}
        return [
            Variant(
                name,
                precisions.get(name, "fp32"),
                partial(measure, name),
                None if name in STUDENTS else STUDENT_BF16 if name in in_bf16 else STUDENT,
            )
            for name in self.labellers
        ]

    def label_singly(self, name: str) -> dict[str, float]:
        """Label sentences one at a time."""
        label, times, cpu_times = self.labellers[name], [], []
        for sentence in self.sentences(self.load.singles + WARM_UP):
            began, cpu_began = time.perf_counter(), time.process_time()
            label([sentence])
            cpu_times.append(1000 * (time.process_time() - cpu_began))
            times.append(1000 * (time.perf_counter() - began))
        p50, p99 = np.percentile(times[WARM_UP:], [50, 99])
        cpu = float(np.median(cpu_times[WARM_UP:]))
        return {MEDIAN.key: float(p50), P99.key: float(p99), MEDIAN_CPU.key: cpu}

    def label_together(self, name: str) -> dict[str, float]:
        """Label many sentences in one call."""
        count = self.load.student if name in STUDENTS else self.load.teacher
        return labelling_rates(self.labellers[name], self.workspace.sentences, count)

    def file_size(self, name: str) -> dict[str, float]:
        """Return the size of a student's file."""
        return megabytes(self.onnx_files.get(name, self.student / STUDENT_NAME))

    def predict(self) -> dict[str, float]:
        """Label a file with `colakit predict`."""
        text, out = self.scratch / "sentences.txt", self.scratch / "predicted"
        text.write_text("".join(f"{line}\n" for line in self.sentences(self.load.lines)), encoding="utf-8")
        command = colakit_command("predict", "--model", self.student, text, "--out", out, "--quiet")
        values = run_command(command, cache=self.scratch / "cache")
        return {SENTENCE_RATE.key: self.load.lines / values["seconds"], **values}

    def sentences(self, count: int) -> list[str]:
        """Return `count` sentences of the corpus, repeated if it has fewer."""
        return repeated(self.workspace.sentences, count)


def repeated(sentences: Sequence[str], count: int) -> list[str]:
    """Return `count` sentences, from the start again if there are fewer."""
    return list(itertools.islice(itertools.cycle(sentences), count))


def labelling_rates(label: Labeller, sentences: Sequence[str], count: int) -> dict[str, float]:
    """Label `count` sentences in one call; return the rates by the clock and by CPU time."""
    wanted = repeated(sentences, count)
    label(wanted[:BATCH_SIZE])
    began, cpu_began = time.perf_counter(), time.process_time()
    label(wanted)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return {SENTENCE_RATE.key: count / seconds, CPU_RATE.key: count / cpu_seconds}


def megabytes(path: Path) -> dict[str, float]:
    """Return the size of a file."""
    return {SIZE.key: path.stat().st_size / 1e6}


def random_teacher(base: Path) -> SentenceClassifier:
    """Return a classifier on the base, with an untrained adapter."""
    lora = LoRAConfig(rank=8, alpha=16)
    model = load_gpt(base).classifier(len(COLA_LABELS))
    inject(model, lora)
    return SentenceClassifier(model, SentenceTokenizer.from_base(base), COLA_LABELS, 1024, lora=lora)


def onnx_files(classifier: SentenceClassifier, folder: Path) -> dict[str, Path]:
    """Export a classifier to ONNX, in fp32 and int8, and return the files by the student's names."""
    folder.mkdir()
    prepared = prepare(classifier)
    write_common(prepared, folder)
    write_companion(folder, prepared.classifier.companion())
    fp32, graph = write_onnx(prepared, folder)
    return {STUDENT_ONNX: folder / fp32, STUDENT_INT8: folder / write_quantized(graph, folder, DYNAMIC)}


class TransformersTeacher:
    """The teacher in transformers: fp32, batches in file order, padded to their longest sentence."""

    def __init__(self, base: Path) -> None:
        from peft_trainer import lora_model, silence
        from transformers import AutoTokenizer

        silence()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = resolve_compute("auto", "auto").device
        self.model = lora_model(base, pad_token_id=self.tokenizer.eos_token_id).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str]) -> list[int]:
        """Return the most probable labels."""
        labels: list[int] = []
        for start in range(0, len(sentences), BATCH_SIZE):
            texts = list(sentences[start : start + BATCH_SIZE])
            batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            labels += self.model(**batch).logits.argmax(dim=1).tolist()
        return labels


if __name__ == "__main__":
    main()
