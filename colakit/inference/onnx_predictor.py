"""Labels and probabilities of sentences by ONNX Runtime, from an exported folder.

Shapes: N sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import INFERENCE_BATCH, Tokens, plan_inference
from colakit.errors import ColakitError
from colakit.inference.sentence_predictor import SentencePredictor
from colakit.runtime.cpu import available_cpus
from colakit.storage.model_file import COMPANION_NAME, check_threshold, read_companion
from colakit.utils.documents import library_errors
from colakit.utils.extras import import_extra

ONNX_FOLDER, ONNX_NAME = "onnx", "model.onnx"
INPUTS = ("input_ids", "attention_mask")
BATCH_TOKENS = 400  # of a batch, as for torch on a CPU


def onnx_file(where: str | Path) -> Path | None:
    """Return the ONNX file at a path: itself, or `onnx/model.onnx` of an exported folder; else None."""
    path = Path(where).expanduser()
    path = path / ONNX_FOLDER / ONNX_NAME if path.is_dir() else path
    return path if path.suffix == ".onnx" and path.is_file() else None


class OnnxPredictor(SentencePredictor):
    """Label sentences by ONNX Runtime, as `Predictor` does, without importing torch.

    Args:
        path: an ONNX file in an exported folder or in its `onnx/`.
        batch_size: largest number of sentences computed at a time.

    Attributes:
        speedup: seconds of the run for one sentence, divided by those of this file, when it was exported;
            None if unknown.

    Raises:
        ColakitError: if the folder has no `colakit.json`, a file is damaged, or onnxruntime is not installed.
    """

    def __init__(self, path: Path, batch_size: int = INFERENCE_BATCH) -> None:
        runtime = import_extra("onnxruntime", "export")
        folders = [folder for folder in path.parents[:2] if (folder / COMPANION_NAME).is_file()]
        if not folders:
            raise ColakitError(
                f"{path}: no {COMPANION_NAME} beside it or one folder up",
                hint="Give a folder that `colakit export` wrote.",
            )
        companion = read_companion(folders[0])
        options = runtime.SessionOptions()
        options.intra_op_num_threads = available_cpus()
        options.log_severity_level = 3  # errors only
        # threads that wait in a loop took 40 % of the processor time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with library_errors(path, hint="Export the model again."):
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            names = tuple(each.name for each in self._session.get_inputs())
            output = self._session.get_outputs()[0]
            self.label_names = tuple(companion.label_names or ())
            if names != INPUTS or output.shape[-1] != len(self.label_names):
                raise ValueError(
                    f"needs the inputs {', '.join(INPUTS)} and {len(self.label_names)} logits "
                    f"(got {', '.join(names)} and {output.shape[-1]})"
                )
            check_threshold(companion.threshold, len(self.label_names))
        self._tokenizer = SentenceTokenizer.from_exported(folders[0])
        self._batch_size = batch_size
        self.origin, self.max_tokens = companion.origin, companion.max_tokens
        self.threshold, self.temperature = companion.threshold, companion.temperature
        speeds = {each.file: each.milliseconds for each in companion.parity.files}
        own = speeds.get(path.relative_to(folders[0]).as_posix())
        self.speedup = speeds["colakit"] / own if own and "colakit" in speeds else None
        self.name = f"{companion.origin.get('command', 'classifier')} ({path.name})"

    def encode(self, sentences: Sequence[str]) -> Tokens:
        """Return the sentences' tokens, truncated to `max_tokens`."""
        return self._tokenizer.encode(sentences, self.max_tokens)

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return (N, C) logits."""
        rows = np.empty((len(tokens), len(self.label_names)), dtype=np.float32)
        for index in plan_inference(tokens.lengths, self._batch_size, BATCH_TOKENS):
            (rows[index],) = self._session.run(None, dict(zip(INPUTS, tokens.padded(index), strict=True)))
        return rows
