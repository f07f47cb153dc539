"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from colakit import __version__
from colakit.serving import messages

REFERENCE = "#/components/schemas/{model}"
BODIES = {
    ("post", "/v1/classify"): ("Label sentences with one or several models.", messages.ClassifyRequest),
    ("post", "/predict"): ("Label sentences, in TEI's shape.", messages.PredictRequest),
    ("post", "/v2/models/{name}/infer"): ("Label sentences, Open Inference Protocol.", messages.InferRequest),
    ("post", "/v1/adapters/{name}"): (
        "Load or replace a model; needs the admin token.",
        messages.LoadRequest,
    ),
}
OTHERS = {
    ("delete", "/v1/adapters/{name}"): "Stop serving a model; needs the admin token.",
    ("get", "/v1/models"): "The models served.",
    ("get", "/v2/models/{name}"): "Inputs and outputs of a model.",
    ("get", "/v2/models/{name}/ready"): "Whether a model is served.",
    ("get", "/health"): "The process answers.",
    ("get", "/v2/health/live"): "The process answers.",
    ("get", "/ready"): "The server takes requests; 503 while it stops.",
    ("get", "/v2/health/ready"): "The server takes requests; 503 while it stops.",
    ("get", "/metrics"): "Metrics in Prometheus' text format.",
    ("get", "/openapi.json"): "This document.",
    ("get", "/"): "A page to try the models.",
}
ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
}


def openapi_document(*, has_token: bool) -> dict[str, Any]:
    """Return the document, OpenAPI 3.1.

    Args:
        has_token: whether requests need a token.
    """
    kinds = [(model, "validation") for _, model in BODIES.values()]
    _, schemas = models_json_schema(kinds, ref_template=REFERENCE)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), (summary, model) in BODIES.items():
        operation = _operation(path, summary)
        reference = {"$ref": REFERENCE.format(model=model.__name__)}
        operation["requestBody"] = {"content": {"application/json": {"schema": reference}}}
        paths.setdefault(path, {})[method] = operation
    for (method, path), summary in OTHERS.items():
        paths.setdefault(path, {})[method] = _operation(path, summary)
    bearer = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "colakit serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**schemas["$defs"], "Error": ERROR}, "securitySchemes": bearer},
        **({"security": [{"bearer": []}]} if has_token else {}),
    }


def _operation(path: str, summary: str) -> dict[str, Any]:
    error = {"schema": {"$ref": REFERENCE.format(model="Error")}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer."},
            "default": {"description": "An error.", "content": {"application/json": error}},
        },
    }
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [name]
    return operation
