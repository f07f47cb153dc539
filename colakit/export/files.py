"""The files of an exported folder.

README.md, colakit.json    model card; decision rule, origin, parity
config.json                shape, labels and padding token, for transformers and transformers.js
tokenizer.json, tokenizer_config.json
model.safetensors          a GPT or Llama, for transformers
student.safetensors        a student, for colakit without ONNX Runtime
onnx/                      model.onnx in fp32; model_quantized.onnx in int8, model_q4.onnx in int4
web/                       a page and a script for Node that label sentences
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colakit.data.tokenizer import save_tokenizer
from colakit.errors import ColakitError
from colakit.export.gpt_graph import gpt_graph
from colakit.export.prepare import PreparedModel
from colakit.export.quantize import FILES, Recipe, quantize
from colakit.export.student_graph import student_graph
from colakit.inference.onnx_predictor import ONNX_FOLDER, ONNX_NAME
from colakit.models.gpt.model import GPTClassifier
from colakit.storage.gpt2 import classifier_json, save_weights
from colakit.storage.model_file import STUDENT_NAME
from colakit.storage.output import check_writable
from colakit.utils.files import replacing, write_json

WEB = Path(__file__).parents[1] / "assets" / "web"
TRANSFORMERS_FILE = "model.safetensors"


def check_new(out: Path) -> None:
    """Raise `ColakitError` if `out` is a file, has content, or cannot be created."""
    check_writable(out)
    if out.is_dir() and any(out.iterdir()):
        raise ColakitError(f"--out {out}: has other files in it", hint="Choose another folder, or empty it.")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that becomes `out` if the block ends without an error."""
    folder = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out.absolute())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_tokenizer(prepared: PreparedModel, folder: Path) -> None:
    """Write the tokenizer."""
    tokenizer, max_tokens = prepared.classifier.tokenizer, prepared.classifier.max_tokens
    save_tokenizer(tokenizer, folder, max_tokens=max_tokens, boundaries=True, pad_id=prepared.pad_id)


def write_common(prepared: PreparedModel, folder: Path) -> None:
    """Write the tokenizer and config.json."""
    write_tokenizer(prepared, folder)
    classifier = prepared.classifier
    tokenizer, model = classifier.tokenizer, classifier.model
    if isinstance(model, GPTClassifier):
        shape = classifier_json(model, tokenizer.end_of_text_id)
    else:
        shape = {"architectures": ["DistilRNN"], "model_type": "colakit_rnn", **asdict(model.config)}
    names = classifier.label_names
    labels = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    write_json(folder / "config.json", {**shape, **labels, "pad_token_id": prepared.pad_id})


def write_weights(prepared: PreparedModel, folder: Path) -> str:
    """Write the weights for transformers, or a student's for colakit; return the name of the file."""
    model = prepared.classifier.model
    if isinstance(model, GPTClassifier):
        save_weights(model, folder)
        return TRANSFORMERS_FILE
    prepared.classifier.save_student(folder)
    return STUDENT_NAME


def write_onnx(prepared: PreparedModel, folder: Path) -> tuple[str, Any]:
    """Write the fp32 ONNX file and web/; return its path in the folder, and the ONNX model."""
    model = prepared.classifier.model
    if isinstance(model, GPTClassifier):
        graph = gpt_graph(model, prepared.shift)
    else:
        graph = student_graph(model.config, {k: v.numpy() for k, v in model.state_dict().items()})
    shutil.copytree(WEB, folder / "web")
    (folder / ONNX_FOLDER).mkdir()
    return _save(graph, folder, ONNX_NAME), graph


def write_quantized(graph: Any, folder: Path, recipe: Recipe) -> str:
    """Write an ONNX model with smaller weights; return its path in the folder."""
    return _save(quantize(graph, recipe), folder, FILES[recipe.kind])


def _save(graph: Any, folder: Path, name: str) -> str:
    with replacing(folder / ONNX_FOLDER / name) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return f"{ONNX_FOLDER}/{name}"
