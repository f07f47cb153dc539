"""The HTTP interface: its routes."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from colakit.config.serve import ServeSettings
from colakit.errors import ColakitError
from colakit.serving import messages
from colakit.serving.batcher import Logits
from colakit.serving.http import Access, HTTPError, error_response, json_response, parse_body, read_body
from colakit.serving.labelling import compute_logits
from colakit.serving.metrics import Metrics
from colakit.serving.models import ModelStore, ServedModel, resolve_inside
from colakit.serving.openapi import openapi_document

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]

log = logging.getLogger("colakit.serving")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass
class Service:
    """What the routes share.

    Attributes:
        is_draining: the server stops soon; connections are closed after their answer.
    """

    store: ModelStore
    settings: ServeSettings
    access: Access = field(default_factory=Access)
    metrics: Metrics = field(default_factory=Metrics)
    is_draining: bool = False

    def __post_init__(self) -> None:
        self.metrics.watch(lambda: self.store.waiting, lambda: len(self.store.models))

    # -- routes

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify."""
        body = await self._read(request, messages.ClassifyRequest)
        sentences = [body.input] if isinstance(body.input, str) else body.input
        names: Sequence[str | None] = body.models or [body.model]
        models = [self._model(name) for name in dict.fromkeys(names)]
        results = await self._label(request, models, sentences, body.truncate)
        answers = [
            messages.classify_answer(model, model.predictions(logits), tokens)
            for model, (logits, tokens) in zip(models, results, strict=True)
        ]
        identity = {"id": f"classify-{uuid.uuid4().hex}", "created": int(time.time())}
        if body.models is None:
            return json_response({**identity, **answers[0]})
        return json_response({**identity, "object": "list", "results": answers})

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        body = await self._read(request, messages.PredictRequest)
        try:
            sentences, is_batch = messages.predict_sentences(body.inputs)
        except ValueError as error:
            raise HTTPError(400, str(error)) from None
        model = self._model(body.model or request.query_params.get("model"))
        ((logits, _),) = await self._label(request, [model], sentences, body.truncate)
        probs = model.predictions(logits).probs.tolist()
        scores = [row.tolist() for row in logits] if body.raw_scores else probs
        return json_response(messages.predict_answer(model, scores, is_batch))

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{name}/infer."""
        body = await self._read(request, messages.InferRequest)
        model, tensor = self._model(request.path_params["name"]), body.inputs[0]
        rows = [row if isinstance(row, list) else [row] for row in tensor.data]
        sentences = [text for row in rows for text in row]
        if math.prod(tensor.shape) != len(sentences) or not sentences:
            raise HTTPError(
                400, f"inputs.0.shape: {tensor.shape} does not match {len(sentences)} sentences in data"
            )
        truncate = body.parameters.get("truncate") is True
        ((logits, _),) = await self._label(request, [model], sentences, truncate)
        return json_response(messages.infer_answer(model, model.predictions(logits), body))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.access.require(request)
        data = [
            {
                "id": model.name,
                "object": "model",
                "owned_by": "colakit",
                "kind": model.kind,
                "version": model.version,
                "labels": list(model.label_names),
                "threshold": model.threshold,
                "temperature": model.temperature,
                "max_tokens": model.max_tokens,
            }
            for model in self.store.models.values()
        ]
        return json_response({"object": "list", "data": data})

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/{name} and /v2/models/{name}/ready."""
        self.access.require(request)
        model = self._model(request.path_params["name"])
        if request.url.path.endswith("/ready"):
            return json_response({"name": model.name, "ready": True})
        tensors = ({"name": "label", "datatype": "BYTES", "shape": [-1]},)
        probs = {"name": "probs", "datatype": "FP64", "shape": [-1, len(model.label_names)]}
        return json_response(
            {
                "name": model.name,
                "versions": [str(model.version)],
                "platform": "colakit",
                "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [*tensors, probs],
            }
        )

    async def load(self, request: Request) -> Response:
        """POST /v1/adapters/{name}: load or replace a model."""
        self.access.require(request, admin=True)
        root, name = self.access.adapter_dir, request.path_params["name"]
        if root is None:
            raise HTTPError(403, "adapters cannot be changed; start the server with --adapter-dir")
        raw = await read_body(request, self.settings)
        body = parse_body(raw, messages.LoadRequest, self.settings) if raw else messages.LoadRequest()
        try:
            folder = await run_in_threadpool(resolve_inside, root, name if body.path is None else body.path)
            model = await run_in_threadpool(self.store.load, name, folder)
        except (ColakitError, OSError) as error:
            message = error.message if isinstance(error, ColakitError) else f"{name}: cannot be read"
            hint = f" {error.hint}" if isinstance(error, ColakitError) and error.hint else ""
            raise HTTPError(422, f"{message}.{hint}") from None
        return json_response({"name": model.name, "version": model.version, "kind": model.kind})

    async def unload(self, request: Request) -> Response:
        """DELETE /v1/adapters/{name}."""
        self.access.require(request, admin=True)
        try:
            model = await run_in_threadpool(self.store.unload, request.path_params["name"])
        except KeyError as error:
            raise HTTPError(404, str(error.args[0])) from None
        return json_response({"name": model.name, "version": model.version})

    async def health(self, request: Request) -> Response:
        """GET /health: the process answers."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: the server takes requests."""
        if self.is_draining:
            raise HTTPError(503, "the server is stopping")
        return json_response({"status": "ready"})

    async def metrics_text(self, request: Request) -> Response:
        """GET /metrics."""
        self.access.require(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return json_response(openapi_document(has_token=self.access.token is not None))

    async def page(self, request: Request) -> Response:
        """GET /: a page to try the models."""
        text = resources.files("colakit.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers=PAGE_HEADERS)

    # -- shared steps

    def _model(self, name: str | None) -> ServedModel:
        try:
            return self.store.get(name)
        except KeyError as error:
            raise HTTPError(404, str(error.args[0])) from None

    async def _read(self, request: Request, kind: type[M]) -> M:
        """Return the body of an authorized request."""
        self.access.require(request)
        return parse_body(await read_body(request, self.settings), kind, self.settings)

    async def _label(
        self, request: Request, models: Sequence[ServedModel], sentences: Sequence[str], truncate: bool
    ) -> list[tuple[list[Logits], int]]:
        results = await compute_logits(request, models, sentences, self.settings, truncate=truncate)
        for model in models:
            self.metrics.sentences.labels(model.name).inc(len(sentences))
        return results

    def handler(self, route: str, handle: Handler) -> Handler:
        """Return a handler that turns errors into answers and counts them."""

        async def handled(request: Request) -> Response:
            began, status = time.monotonic(), 499  # nginx's status of a client that went away
            try:
                response = await handle(request)
                status = response.status_code
            except ClientDisconnect:
                response = Response(status_code=status)
            except HTTPError as error:
                response, status = error_response(error.status, error.message, error.headers), error.status
            except Exception:
                log.exception("%s %s failed", request.method, route)
                status = 500
                response = error_response(status, "the server failed to compute the answer")
            if self.is_draining:
                response.headers["connection"] = "close"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)
            return response

        return handled


def make_app(service: Service) -> Starlette:
    """Return the ASGI application."""
    routes = [
        ("POST", "/v1/classify", service.classify),
        ("POST", "/predict", service.predict),
        ("POST", "/v2/models/{name}/infer", service.infer),
        ("GET", "/v2/models/{name}", service.model_metadata),
        ("GET", "/v2/models/{name}/ready", service.model_metadata),
        ("GET", "/v1/models", service.models),
        ("POST", "/v1/adapters/{name}", service.load),
        ("DELETE", "/v1/adapters/{name}", service.unload),
        *(("GET", path, service.health) for path in ("/health", "/v2/health/live")),
        *(("GET", path, service.ready) for path in ("/ready", "/v2/health/ready")),
        ("GET", "/metrics", service.metrics_text),
        ("GET", "/openapi.json", service.openapi),
        ("GET", "/", service.page),
    ]
    by_path: dict[str, dict[str, Handler]] = {}
    for method, path, handle in routes:
        by_path.setdefault(path, {})[method] = service.handler(path, handle)

    def dispatcher(handlers: dict[str, Handler]) -> Handler:
        async def dispatch(request: Request) -> Response:
            if (handle := handlers.get(request.method)) is not None:
                return await handle(request)
            allowed = ", ".join(handlers)
            return error_response(
                405, f"{request.method} is not allowed; allowed: {allowed}", {"allow": allowed}
            )

        return dispatch

    async def not_found(request: Request, error: Exception) -> Response:
        return error_response(404, "no such path; /openapi.json lists all")

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[Route(path, dispatcher(handlers), methods=methods) for path, handlers in by_path.items()],
        exception_handlers={404: not_found, 405: not_found},
    )
