"""Labels and probabilities of sentences from a student's `ckpt.pt`, with numpy and the Rust tokenizer alone.

Shapes: B batch, T tokens, N sentences, C classes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import INFERENCE_BATCH, Tokens, plan_inference
from colakit.errors import first_line
from colakit.inference.decisions import Predictions
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.numpy_rnn import NumpyRNN
from colakit.runtime.cpu import available_cpus, keep_freed_memory
from colakit.storage.archives import Archive
from colakit.storage.model_file import CHECKPOINT_FORMAT, CHECKPOINT_NAME, check_facts, student_name

MAX_BATCH_TOKENS = 2**13  # padding included; each worker holds some 20 KB a token
MAX_WORKERS = 8
_ONE_AT_A_TIME = threading.Lock()  # the limit on threads is the whole process's


class StudentPredictor:
    """Labels sentences as `Predictor` does, from the file of a recurrent student, without importing torch.

        predictor = StudentPredictor("runs/distill-001")
        predictor(["The cat sleep."]).labels

    Args:
        where: a `ckpt.pt`, or the folder of its run.
        batch_size: sentences computed at a time, by each core; sentences of like length go together.

    Raises:
        ValueError: if it is no student's file, or is damaged.
        OSError: if it cannot be read.
    """

    def __init__(self, where: str | Path, batch_size: int = INFERENCE_BATCH) -> None:
        keep_freed_memory()
        path = Path(where).expanduser()
        with Archive(path / CHECKPOINT_NAME if path.is_dir() else path) as archive:
            content = archive.content
            try:
                if content["kind"] != "rnn" or content["format"] > CHECKPOINT_FORMAT:
                    raise ValueError("no student's, or of a newer format")
                tensors = {name: archive.array(stored) for name, stored in content["tensors"].items()}
                self._model = NumpyRNN(RNNConfig(**content["config"]), tensors)
                check_facts(content, self._model.config.num_labels)
                self._tokenizer = SentenceTokenizer.from_dict(content["tokenizer"])
                self.name = student_name(content["origin"], self._model.config.cell)
            except Exception as error:  # whatever missing or foreign content leads to
                raise ValueError(f"not what colakit writes ({first_line(error)})") from error
        self.label_names = tuple(content["label_names"])
        self.max_tokens: int | None = content["max_tokens"]
        self.threshold: float | None = content["threshold"]
        self._batch_size = batch_size

    def __call__(self, sentences: Sequence[str]) -> Predictions:
        """Return labels and probabilities in the order of the sentences."""
        tokens = self._tokenizer.encode(sentences, self.max_tokens)
        return Predictions.of(self._logits(tokens), self.threshold, tokens.num_truncated)

    def _logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return (N, C) logits; of several batches, every core takes one at a time."""
        rows = np.empty((len(tokens), self._model.config.num_labels), dtype=np.float32)

        def compute(index: NDArray[np.int64]) -> None:
            rows[index] = self._model(*tokens.padded(index))

        plan = list(self._plan(tokens.lengths))
        if len(plan) <= 1:
            for index in plan:
                compute(index)
            return rows
        workers = min(available_cpus(), MAX_WORKERS)
        with _ONE_AT_A_TIME, threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(compute, plan):
                pass
        return rows

    def _plan(self, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield batches in order of length, smaller ones where sentences are very long."""
        for index in plan_inference(lengths, self._batch_size):
            size = max(1, MAX_BATCH_TOKENS // int(lengths[index[-1]]))
            yield from (index[start : start + size] for start in range(0, len(index), size))
