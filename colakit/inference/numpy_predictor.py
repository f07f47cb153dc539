"""Labels and probabilities of sentences from a student's `student.safetensors`, without importing torch.

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
from colakit.errors import ColakitError
from colakit.inference.sentence_predictor import SentencePredictor
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.numpy_rnn import NumpyRNN
from colakit.runtime.cpu import available_cpus, keep_freed_memory
from colakit.storage.model_file import (
    STUDENT_NAME,
    check_shapes,
    describe_model,
    read_student_file,
    student_file,
    student_name,
)
from colakit.utils.documents import library_errors

MAX_BATCH_TOKENS = 2**13  # with padding; a worker needs about 20 KB per token
MAX_WORKERS = 8
_BLAS_LOCK = threading.Lock()  # threadpool_limits acts on the whole process


class StudentPredictor(SentencePredictor):
    """Label sentences with a recurrent student, as `Predictor` does, without importing torch.

        predictor = StudentPredictor("runs/distill-001")
        predictor("The cat sleep.").names

    Args:
        where: a `student.safetensors`, or the run folder or `ckpt.pt` beside it.
        batch_size: largest number of sentences that each core computes at a time.

    Raises:
        ColakitError: if it is another model, is damaged, cannot be read, or was not written with `ckpt.pt`.
    """

    def __init__(self, where: str | Path, batch_size: int = INFERENCE_BATCH) -> None:
        keep_freed_memory()
        path, file = Path(where).expanduser(), student_file(where)
        if not path.exists():
            raise ColakitError(f"{where}: file or folder not found", hint="Check the path.")
        if file is None:
            raise ColakitError(
                f"{where}: {describe_model(path)}, not a recurrent student (no {STUDENT_NAME})",
                hint="colakit.load(…) in Python and `colakit predict --model` load every kind of classifier.",
            )
        metadata, tensors = read_student_file(file, alone=file == path)
        with library_errors(where, hint="Copy or train the student again."):
            if metadata.kind != "rnn":
                raise ValueError("not a student")
            self._model = NumpyRNN(RNNConfig(**metadata.config), tensors)
            self._tokenizer = SentenceTokenizer.from_state(metadata.tokenizer)
            check_shapes(metadata, self._model.config, self._model.config.num_labels, self._tokenizer)
        self.name = student_name(metadata.origin, self._model.config.cell)
        self.label_names, self.origin = tuple(metadata.label_names), metadata.origin
        self.max_tokens = metadata.max_tokens
        self.threshold, self.temperature = metadata.threshold, metadata.temperature
        self._batch_size = batch_size

    def encode(self, sentences: Sequence[str]) -> Tokens:
        """Return the sentences' tokens, truncated to `max_tokens`."""
        return self._tokenizer.encode(sentences, self.max_tokens)

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return (N, C) logits; several batches are spread over the cores, one BLAS thread each."""
        rows = np.empty((len(tokens), self._model.config.num_labels), dtype=np.float32)

        def compute(index: NDArray[np.int64]) -> None:
            rows[index] = self._model(*tokens.padded(index))

        plan = list(self._plan(tokens.lengths))
        if len(plan) <= 1:
            for index in plan:
                compute(index)
            return rows
        workers = min(available_cpus(), MAX_WORKERS)
        with _BLAS_LOCK, threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(compute, plan):
                pass
        return rows

    def _plan(self, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield batches in order of length, of at most `MAX_BATCH_TOKENS` tokens or one sentence."""
        for index in plan_inference(lengths, self._batch_size):
            size = max(1, MAX_BATCH_TOKENS // int(lengths[index[-1]]))
            yield from (index[start : start + size] for start in range(0, len(index), size))
