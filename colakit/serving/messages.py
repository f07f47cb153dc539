"""Bodies of requests and answers: vLLM's /classify, TEI's /predict, and the Open Inference Protocol.

Sizes are bounded before a body is parsed (`colakit.utils.documents`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from colakit.inference.decisions import Predictions
from colakit.serving.models import ServedModel
from colakit.utils.documents import Document

Text = Annotated[str, Field(description="A sentence.")]
ModelName = Annotated[str, Field(max_length=64)]


class ClassifyRequest(Document):
    """Body of POST /v1/classify, in vLLM's shape."""

    input: Text | Annotated[list[Text], Field(min_length=1)]
    model: ModelName | None = Field(None, description="Name of a model; optional if one is served.")
    models: Annotated[list[ModelName], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Names of several models, which label the same sentences."
    )
    truncate: bool = Field(False, description="Cut longer sentences instead of refusing them.")


class PredictRequest(Document):
    """Body of POST /predict, in the shape of text-embeddings-inference (TEI)."""

    inputs: Text | list[Text] | list[Annotated[list[Text], Field(min_length=1, max_length=2)]]
    model: ModelName | None = Field(None, description="Name of a model; optional if one is served.")
    truncate: bool = False
    raw_scores: bool = Field(False, description="Return logits instead of probabilities.")


class TensorIn(Document):
    """An input tensor of the Open Inference Protocol."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: list[Text] | list[list[Text]]


class InferRequest(Document):
    """Body of POST /v2/models/{name}/infer, in the shape of the Open Inference Protocol."""

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[TensorIn], Field(min_length=1, max_length=1)]
    parameters: dict[str, Any] = Field({}, description="`truncate: true` cuts longer sentences.")


class LoadRequest(Document):
    """Body of POST /v1/adapters/{name}; empty takes the folder of the model's name."""

    path: str | None = Field(None, description="Folder below --adapter-dir.")


def classify_answer(model: ServedModel, predictions: Predictions, num_tokens: int) -> dict[str, Any]:
    """Return vLLM's answer for one model."""
    names = model.label_names
    rows = zip(predictions.labels.tolist(), predictions.probs.tolist(), strict=True)
    return {
        "object": "list",
        "model": model.name,
        "version": model.version,
        "labels": list(names),
        "data": [
            {"index": i, "label": names[label], "probs": probs, "num_classes": len(names)}
            for i, (label, probs) in enumerate(rows)
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def predict_sentences(inputs: str | list[str] | list[list[str]]) -> tuple[list[str], bool]:
    """Return TEI's sentences, and whether they are a batch.

    Raises:
        ValueError: for a pair of sentences.
    """
    if isinstance(inputs, str):
        return [inputs], False
    if inputs and isinstance(inputs[0], str):
        rows, is_batch = [inputs], False
    else:
        rows, is_batch = inputs, True  # type: ignore[assignment]
    if not rows:
        raise ValueError("inputs: must not be empty")
    if any(len(row) != 1 for row in rows):
        raise ValueError("inputs: a list of sentences is a pair; write [[first], [second]] for a batch")
    return [str(row[0]) for row in rows], is_batch


def predict_answer(model: ServedModel, scores: Sequence[Sequence[float]], is_batch: bool) -> list[Any]:
    """Return TEI's answer: the labels of each sentence with their scores, the highest first."""
    rows = [
        [
            {"label": name, "score": score}
            for score, name in sorted(zip(row, model.label_names, strict=True), key=lambda pair: -pair[0])
        ]
        for row in scores
    ]
    return rows if is_batch else rows[0]


def infer_answer(model: ServedModel, predictions: Predictions, request: InferRequest) -> dict[str, Any]:
    """Return the answer of the Open Inference Protocol: `label` and `probs`."""
    number, classes = predictions.probs.shape
    labels = {"name": "label", "datatype": "BYTES", "shape": [number], "data": predictions.names}
    probs = {
        "name": "probs",
        "datatype": "FP64",
        "shape": [number, classes],
        "data": predictions.probs.ravel().tolist(),
        "parameters": {"labels": list(model.label_names)},
    }
    identity = {} if request.id is None else {"id": request.id}
    return {
        "model_name": model.name,
        "model_version": str(model.version),
        **identity,
        "outputs": [labels, probs],
    }
