"""`colakit serve` under load: 1, 8 and 64 adapters, PEFT's mixed batch behind the same server, students.

    python benchmarks/serving.py --base builtin --precision bf16
    python benchmarks/serving.py --base gpt2-size --precision bf16     # or int8, with PEFT in bf16

A student is served as its run folder and as the int8 file that `colakit export` makes of it.

Every server is a process of its own. Variants of one server alternate, and each value is the median over the
repeats. Besides the wall clock the tables have sentences per second of the server's processor time, which
other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import machine_info
from http_load import Load, run_load

from colakit.config.serve import ServeSettings
from colakit.data.builtin.corpus import builtin_pairs
from colakit.inference.classifier import SentenceClassifier
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject, train_modules
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.storage.gpt2 import base_fingerprint, load_gpt, load_tokenizer, resolve_base, write_base
from colakit.storage.model_file import write_companion
from colakit.storage.peft import write_adapter

RANK, NUM_ADAPTERS, PER_REQUEST = 8, 64, 4
LABELS = ("unacceptable", "acceptable")


def write_models(folder: Path, base: str) -> None:
    """Write `base`, 64 adapters of random weights, and a student of the default shape."""
    tokenizer = load_tokenizer(resolve_base("builtin"), prefix=True, suffix=True)
    if base == "builtin":
        gpt, where = load_gpt(resolve_base("builtin")), "builtin"
    else:
        torch.manual_seed(0)
        gpt, where = GPT(GPTConfig()).eval(), str(folder / "base")
        write_base(gpt, tokenizer, Path(where))
        gpt = load_gpt(Path(where))
    origin = {"command": "finetune", "base": where, "base_fingerprint": base_fingerprint(gpt)}
    config = LoRAConfig(rank=RANK)
    model = gpt.classifier(2)
    inject(model, config)
    train_modules(model)
    for number in range(NUM_ADAPTERS):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + torch.randn_like(parameter) * 0.02
        classifier = SentenceClassifier(model, tokenizer, LABELS, 128, 0.5, config, origin)
        write_adapter(model, folder / "adapters" / f"a{number}", config, base=where)
        write_companion(folder / "adapters" / f"a{number}", classifier.companion())
    rnn = RNNConfig(vocab_size=tokenizer.vocab_size, num_labels=2)
    (folder / "student").mkdir()
    origin = {"command": "distill", "base": "builtin"}
    student = SentenceClassifier(DistilRNN(rnn), tokenizer, LABELS, 128, 0.5, origin=origin)
    student.save(folder / "student" / "ckpt.pt")
    words = ["export", folder / "student", "--out", folder / "exported", "--format", "onnx"]
    words += ["--data", "builtin", "--split", "id_dev", "--quiet"]
    subprocess.run([sys.executable, "-m", "colakit", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


# -- the rival: PEFT's mixed batch behind the same HTTP server


def serve_peft(folder: Path, base: str, port: int, dtype: torch.dtype) -> None:
    """Serve 64 adapters of the same shape with PEFT's `adapter_names`; PEFT takes no trained norms there."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2ForSequenceClassification

    from colakit.runtime.device import prepare_cpu
    from colakit.serving.app import Service
    from colakit.serving.batcher import Batcher
    from colakit.serving.models import ServedModel
    from colakit.serving.server import listen, serve

    prepare_cpu()
    where = resolve_base("builtin") if base == "builtin" else folder / "base"
    model = GPT2ForSequenceClassification.from_pretrained(where, num_labels=2, dtype=dtype)
    model.config.pad_token_id = 0
    config = LoraConfig(
        task_type="SEQ_CLS", r=RANK, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    peft = get_peft_model(model, config, adapter_name="a0")
    for number in range(1, NUM_ADAPTERS):
        peft.add_adapter(f"a{number}", config)
    peft.to(dtype).eval()
    tokenizer = load_tokenizer(resolve_base("builtin"), prefix=True, suffix=True)

    @torch.inference_mode()
    def run(units: list[Any]) -> list[Any]:
        rows = [torch.from_numpy(ids.astype(np.int64)) for _, ids in units]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        names = [name for name, _ in units]
        return list(peft(input_ids, attention_mask=mask, adapter_names=names).logits.float().numpy())

    settings = ServeSettings(port=port)
    batcher = Batcher(run, max_tokens=settings.max_batch_tokens, max_wait=0.002, max_queue=2**20)
    encode = partial(tokenizer.encode, max_tokens=128)
    names = [f"a{number}" for number in range(NUM_ADAPTERS)]
    models = {
        name: ServedModel(name, 1, "adapter", LABELS, 0.5, 1.0, 128, encode, name, batcher)  # type: ignore[arg-type]
        for name in names
    }

    class Store:
        waiting = 0

        def __init__(self) -> None:
            self.models = models

        def get(self, name: str | None) -> ServedModel:
            return models[name or "a0"]

        def close(self) -> None:
            batcher.close()

    serve(Service(Store(), settings), listen("127.0.0.1", port))  # type: ignore[arg-type]


# -- measuring


@contextmanager
def server(command: Sequence[str], port: int) -> Iterator[int]:
    """Start a server; yield its process id when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
            load = run_load(
                "127.0.0.1", port, lambda i: {"model": "a0", "input": ["a"]}, clients=1, seconds=0.01
            )
            if load.seconds:
                break
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Bodies:
    """Requests of `PER_REQUEST` real sentences for one of several models in turn."""

    def __init__(self, models: Sequence[str], per_request: int = PER_REQUEST) -> None:
        self.sentences = [pair.sentence for pair in builtin_pairs() if pair.split == "id_dev"]
        random.Random(0).shuffle(self.sentences)
        self.models, self.per_request = models, per_request

    def __call__(self, number: int) -> dict[str, Any]:
        """Return the body of request `number`."""
        start = number * self.per_request % (len(self.sentences) - self.per_request)
        chosen = self.sentences[start : start + self.per_request]
        return {"model": self.models[number % len(self.models)], "input": chosen}


def measure(pid: int, port: int, bodies: Bodies, *, clients: int, seconds: float) -> dict[str, float]:
    """Return the rates of a load without pauses."""
    before = processor_seconds(pid)
    load = run_load("127.0.0.1", port, bodies, clients=clients, seconds=seconds)
    require(load)
    return {
        "sentences_per_second": load.rate,
        "sentences_per_processor_second": load.sentences / (processor_seconds(pid) - before),
        "p50_ms": load.percentile(50),
        "p99_ms": load.percentile(99),
    }


def require(load: Load) -> None:
    """End the benchmark if requests failed."""
    if load.failures:
        sys.exit(f"{len(load.failures)} requests failed: {load.failures[:5]}")


def median_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each value."""
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}


def bench(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all servers."""
    write_models(folder, options.base)
    names = [f"a{number}" for number in range(NUM_ADAPTERS)]
    results: dict[str, Any] = {
        "machine": machine_info(),
        "base": options.base,
        "load_average": os.getloadavg(),
    }
    colakit = [sys.executable, "-m", "colakit", "serve", "--port", str(options.port), "--quiet"]
    common = {"clients": options.clients, "seconds": options.seconds}
    precisions = ["--precision", options.precision]
    students = [
        f"student={folder / 'student'}",
        f"student-int8={folder / 'exported' / 'onnx' / 'model_quantized.onnx'}",
    ]
    with server([*colakit, *precisions, f"a0={folder / 'adapters' / 'a0'}", *students], options.port) as pid:
        alone = resident(pid)
    everything = [*colakit, *precisions, "--adapter-dir", str(folder / "adapters"), *students]
    with server(everything, options.port) as pid:
        files = [path.stat().st_size for path in folder.glob("adapters/*/adapter_model.safetensors")]
        results["memory"] = {
            "adapter_file_bytes": files[0],
            "adapter_memory_bytes": (resident(pid) - alone) / (len(files) - 1),
            "process_mib": {"1 adapter": alone / 2**20, f"{len(files)} adapters": resident(pid) / 2**20},
        }
        counts = (1, 8, NUM_ADAPTERS)
        rows: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for count in counts:
            measure(pid, options.port, Bodies(names[:count]), clients=options.clients, seconds=0.5)
        for _ in range(options.repeats):
            for count in counts:
                rows[count].append(measure(pid, options.port, Bodies(names[:count]), **common))
                print(count, rows[count][-1], file=sys.stderr, flush=True)
        results["colakit"] = {f"{count} adapters": median_of(values) for count, values in rows.items()}
        peak = results["colakit"][f"{NUM_ADAPTERS} adapters"]["sentences_per_second"]
        half = run_load(
            *("127.0.0.1", options.port, Bodies(names)),
            clients=options.clients,
            seconds=options.seconds * 2,
            rate=peak / PER_REQUEST / 2,
        )
        require(half)
        results["half the peak"] = {
            "sentences_per_second": half.rate,
            "p50_ms": half.percentile(50),
            "p99_ms": half.percentile(99),
        }
        for name in ("student", "student-int8"):
            values = [
                measure(pid, options.port, Bodies([name], 64), clients=8, seconds=options.seconds)
                for _ in range(options.repeats)
            ]
            results[name] = median_of(values)
    rival = [sys.executable, __file__, "--serve-peft", str(folder), "--base", options.base]
    rival += ["--port", str(options.port), "--precision", options.precision]
    with server(rival, options.port) as pid:
        for count in (8, NUM_ADAPTERS):
            values = [
                measure(pid, options.port, Bodies(names[:count]), **common) for _ in range(options.repeats)
            ]
            results.setdefault("PEFT", {})[f"{count} adapters"] = median_of(values)
    results["by processor time"] = ratios(results)
    return {**results, "load average at the end": os.getloadavg()}


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Return the throughput of mixed adapters relative to one adapter and to PEFT."""
    rates = {name: row["sentences_per_processor_second"] for name, row in results["colakit"].items()}
    peft = {name: row["sentences_per_processor_second"] for name, row in results["PEFT"].items()}
    relative = {f"{name} / one": rates[name] / rates["1 adapters"] for name in peft}
    relative |= {f"{name} / PEFT": rates[name] / rate for name, rate in peft.items()}
    return {name: round(ratio, 2) for name, ratio in relative.items()}


def main() -> None:
    """Run the benchmark, print its results and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=("builtin", "gpt2-size"), default="builtin")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve-peft", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_peft is not None:
        dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
        serve_peft(options.serve_peft, options.base, options.port, dtype)
        return
    with TemporaryDirectory() as folder:
        results = bench(options, Path(folder))
    text = json.dumps(results, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
