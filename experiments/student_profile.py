"""Where a student's time goes: CPU time of each part of labelling with numpy, in one thread.

    OMP_NUM_THREADS=1 python experiments/student_profile.py RUN [--data CORPUS] [--batch N] [--repeats N]

RUN is a run of `distill` or `train-scratch` with an LSTM. The sentences of train are labelled in batches of
similar length. GFLOP/s of the recurrent products stand beside those of the same products in a loop of nothing
else, which bound the sentences a second.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from colakit.config.data import DataSettings
from colakit.data.loading import load_dataset
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import plan_inference
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.numpy_rnn import NumpyRNN
from colakit.storage.model_file import read_student_file, student_file
from colakit.utils.array_cache import default_cache
from colakit.utils.console import Reporter

PARTS = {  # part -> functions, and whether what they call counts
    "tokens": (("encode",), True),
    "batches": (("padded", "_order", "_embedded"), True),
    "input products": (("product",), True),
    "gathering of input gates": (("pick",), True),
    "recurrent products": (("add_product",), True),
    "sigmoid": (("sigmoid_",), True),
    "tanh": (("tanh",), True),
    "other arithmetic of gates": (("_lstm",), False),
    "pooling": (("_pool",), True),
}
FILES = {"tokenizer.py", "tokens.py", "numpy_rnn.py", "recurrence.py"}
LOOP_SECONDS = 1.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run folder of a student with an LSTM")
    parser.add_argument("--data", default="builtin", help="corpus, as of colakit")
    parser.add_argument("--batch", type=int, default=256, help="sentences")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest counts")
    arguments = parser.parse_args()
    file = student_file(arguments.run)
    if file is None:
        parser.error(f"{arguments.run} has no student")
    metadata, tensors = read_student_file(file)
    config, tokenizer = RNNConfig(**metadata.config), SentenceTokenizer.from_state(metadata.tokenizer)
    data = load_dataset(DataSettings(path=arguments.data), default_cache(), Reporter(), before_fetch=None)
    sentences = data.split("train").sentences
    lengths = tokenizer.encode(sentences, metadata.max_tokens).lengths
    batches = plan_inference(lengths, arguments.batch)
    texts = [[sentences[i] for i in batch] for batch in batches]
    model = NumpyRNN(config, tensors)

    def label() -> None:
        for batch in texts:
            tokens = tokenizer.encode(batch, metadata.max_tokens)
            model(*tokens.padded(np.arange(len(batch))))

    with threadpool_limits(1, "blas"):
        label()
        alone = min(cpu_seconds(label) for _ in range(arguments.repeats))
        profiles = [profile(label) for _ in range(arguments.repeats)]
        parts = min(profiles, key=lambda parts: sum(parts.values()))
        loop = rate_of_products(config, arguments.batch)
    steps = sum(len(batch) * (int(lengths[batch].max()) - 1) for batch in batches)  # none for the first token
    operations = 2 * config.directions * steps * config.hidden_size * 4 * config.hidden_size
    count, total = len(sentences), sum(parts.values())
    print("| part | µs a sentence | % | GFLOP/s |\n|---|---:|---:|---:|")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        rate = f"{operations / seconds / 1e9:.0f}" if part == "recurrent products" else ""
        print(f"| {part} | {1e6 * seconds / count:.1f} | {100 * seconds / total:.0f} | {rate} |")
    print(f"| all | {1e6 * total / count:.1f} | 100 | |\n")
    print(f"without the profiler: {count / alone:,.0f} sentences a CPU second")
    bound = loop / operations * count
    print(f"recurrent products alone: {loop / 1e9:.0f} GFLOP/s, {bound:,.0f} sentences a CPU second")


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of `call()`."""
    began = time.process_time()
    call()
    return time.process_time() - began


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Return the CPU seconds of each part of `call()`, under Python's profiler."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(call)
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    own = {name: entry for (file, _, name), entry in stats.items() if file.rsplit("/", 1)[-1] in FILES}
    parts = {
        part: sum(own[name][3 if with_calls else 2] for name in names if name in own)
        for part, (names, with_calls) in PARTS.items()
    }
    total = sum(entry[2] for entry in stats.values())
    return {**parts, "the rest": total - sum(parts.values())}


def rate_of_products(config: RNNConfig, batch: int) -> float:
    """Return operations a CPU second of the recurrent product of `batch` sentences in a loop."""
    generator = np.random.default_rng(0)
    states = generator.random((batch, config.hidden_size), dtype=np.float32)
    weight = generator.random((config.hidden_size, 4 * config.hidden_size), dtype=np.float32)
    out, products = np.empty((batch, 4 * config.hidden_size), dtype=np.float32), 0
    began = time.process_time()
    while time.process_time() - began < LOOP_SECONDS:
        np.matmul(states, weight, out=out)
        products += 1
    return products * 2 * states.size * weight.shape[1] / (time.process_time() - began)


if __name__ == "__main__":
    main()
