"""The HTTP interface: routes, limits, errors, access.

Errors are JSON, `{"code": …, "message": …}`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from colakit.config.serve import ServeSettings
from colakit.errors import ColakitError
from colakit.serving import messages
from colakit.serving.batcher import Logits, QueueFullError
from colakit.serving.metrics import Metrics
from colakit.serving.models import ModelStore, ServedModel, resolve_inside
from colakit.serving.openapi import openapi_document
from colakit.utils.documents import Bounds, validate_json

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    422: "invalid_model",
    429: "queue_full",
    500: "internal_error",
    503: "unavailable",
}
INLINE_CHARACTERS = 2**13  # texts up to this length are tokenized in the event loop, in about a millisecond
log = logging.getLogger("colakit.serving")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class HTTPError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass
class Access:
    """Tokens that requests must carry as `Authorization: Bearer …`; None allows all."""

    token: str | None = None
    admin_token: str | None = None
    adapter_dir: Path | None = None

    def require(self, request: Request, *, admin: bool = False) -> None:
        """Raise `HTTPError` unless the request carries a token that allows it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        allowed = [token for token in (self.admin_token, None if admin else self.token) if token]
        if not admin and self.token is None:
            return
        if admin and self.admin_token is None:
            raise HTTPError(403, "adapters cannot be changed; start the server with --admin-token")
        if not any(hmac.compare_digest(given, token.encode()) for token in allowed):
            raise HTTPError(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})


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
        results = await self._label(request, models, sentences, truncate=body.truncate)
        answers = [
            messages.classify_answer(model, model.predictions(logits), tokens)
            for model, (logits, tokens) in zip(models, results, strict=True)
        ]
        identity = {"id": f"classify-{uuid.uuid4().hex}", "created": int(time.time())}
        if body.models is None:
            return _json({**identity, **answers[0]})
        return _json({**identity, "object": "list", "results": answers})

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        body = await self._read(request, messages.PredictRequest)
        try:
            sentences, is_batch = messages.predict_sentences(body.inputs)
        except ValueError as error:
            raise HTTPError(400, str(error)) from None
        model = self._model(body.model or request.query_params.get("model"))
        ((logits, _),) = await self._label(request, [model], sentences, truncate=body.truncate)
        probs = model.predictions(logits).probs.tolist()
        scores = [row.tolist() for row in logits] if body.raw_scores else probs
        return _json(messages.predict_answer(model, scores, is_batch))

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{name}/infer."""
        body = await self._read(request, messages.InferRequest)
        model, tensor = self._model(request.path_params["name"]), body.inputs[0]
        rows = [row if isinstance(row, list) else [row] for row in tensor.data]
        sentences = [text for row in rows for text in row]
        size = 1
        for length in tensor.shape:
            size *= length
        if size != len(sentences) or not sentences:
            raise HTTPError(
                400, f"inputs.0.shape: {tensor.shape} does not match {len(sentences)} sentences in data"
            )
        truncate = body.parameters.get("truncate") is True
        ((logits, _),) = await self._label(request, [model], sentences, truncate=truncate)
        return _json(messages.infer_answer(model, model.predictions(logits), body))

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
        return _json({"object": "list", "data": data})

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/{name} and /v2/models/{name}/ready."""
        self.access.require(request)
        model = self._model(request.path_params["name"])
        if request.url.path.endswith("/ready"):
            return _json({"name": model.name, "ready": True})
        tensors = ({"name": "label", "datatype": "BYTES", "shape": [-1]},)
        probs = {"name": "probs", "datatype": "FP64", "shape": [-1, len(model.label_names)]}
        return _json(
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
        raw = await self._body(request)
        body = _parse(raw, messages.LoadRequest, self.settings) if raw else messages.LoadRequest()
        try:
            folder = await run_in_threadpool(resolve_inside, root, name if body.path is None else body.path)
            model = await run_in_threadpool(self.store.load, name, folder)
        except (ColakitError, OSError) as error:
            message = error.message if isinstance(error, ColakitError) else f"{name}: cannot be read"
            hint = f" {error.hint}" if isinstance(error, ColakitError) and error.hint else ""
            raise HTTPError(422, f"{message}.{hint}") from None
        return _json({"name": model.name, "version": model.version, "kind": model.kind})

    async def unload(self, request: Request) -> Response:
        """DELETE /v1/adapters/{name}."""
        self.access.require(request, admin=True)
        try:
            model = await run_in_threadpool(self.store.unload, request.path_params["name"])
        except KeyError as error:
            raise HTTPError(404, str(error.args[0])) from None
        return _json({"name": model.name, "version": model.version})

    async def health(self, request: Request) -> Response:
        """GET /health: the process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: the server takes requests."""
        if self.is_draining:
            raise HTTPError(503, "the server is stopping")
        return _json({"status": "ready"})

    async def metrics_text(self, request: Request) -> Response:
        """GET /metrics."""
        self.access.require(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return _json(openapi_document(has_token=self.access.token is not None))

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
        return _parse(await self._body(request), kind, self.settings)

    async def _body(self, request: Request) -> bytes:
        """Return the body, of bounded size, that arrives in time."""
        limit = self.settings.max_body_bytes
        message = f"the body is longer than {limit:,} bytes"
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > limit:
            raise HTTPError(413, message, {"connection": "close"})
        body = bytearray()

        async def receive() -> None:
            async for part in request.stream():
                body.extend(part)
                if len(body) > limit:
                    raise HTTPError(413, message, {"connection": "close"})

        try:
            await asyncio.wait_for(receive(), self.settings.receive_seconds)
        except asyncio.TimeoutError:
            raise HTTPError(408, "the body did not arrive in time", {"connection": "close"}) from None
        return bytes(body)

    async def _label(
        self, request: Request, models: Sequence[ServedModel], sentences: Sequence[str], *, truncate: bool
    ) -> list[tuple[list[Logits], int]]:
        """Return each model's logits of the sentences, and its number of tokens."""
        if len(sentences) * len(models) > self.settings.max_sentences:
            raise HTTPError(
                413,
                f"{len(sentences):,} sentences for {len(models):,} models; sentences times models may be "
                f"{self.settings.max_sentences:,}",
            )
        if sum(map(len, sentences)) <= INLINE_CHARACTERS:
            encoded = self._encode(models, sentences, truncate)
        else:
            encoded = await run_in_threadpool(self._encode, models, sentences, truncate)
        num_tokens = sum(sum(costs) for _, costs in encoded)
        if num_tokens > self.settings.max_request_tokens:
            raise HTTPError(
                413, f"{num_tokens:,} tokens; a request may have {self.settings.max_request_tokens:,}"
            )
        jobs: dict[Any, list[int]] = {}
        for i, model in enumerate(models):
            jobs.setdefault(model.batcher, []).append(i)
        outputs: dict[int, list[Logits]] = {}

        async def compute(batcher: Any, indices: list[int]) -> None:
            # a sentence's units are neighbours, so that a batch shares the blocks below all adapters
            units = [encoded[i][0][s] for s in range(len(sentences)) for i in indices]
            costs = [encoded[i][1][s] for s in range(len(sentences)) for i in indices]
            logits = await batcher.submit(units, costs)
            outputs.update({i: logits[offset :: len(indices)] for offset, i in enumerate(indices)})

        async def compute_all() -> None:
            await asyncio.gather(*(compute(batcher, indices) for batcher, indices in jobs.items()))

        try:
            await self._while_connected(request, asyncio.ensure_future(compute_all()))
        except QueueFullError as full:
            wait = {"retry-after": str(full.seconds)}
            raise HTTPError(429, "too many sentences wait; try again later", wait) from None
        for model in models:
            self.metrics.sentences.labels(model.name).inc(len(sentences))
        return [(outputs[i], sum(encoded[i][1])) for i in range(len(models))]

    def _encode(
        self, models: Sequence[ServedModel], sentences: Sequence[str], truncate: bool
    ) -> list[tuple[list[Any], list[int]]]:
        """Return each model's units and their numbers of tokens."""
        results = []
        for model in models:
            tokens = model.encode(sentences)
            if tokens.num_truncated and not truncate:
                raise HTTPError(
                    413,
                    f"{tokens.num_truncated} sentences are longer than the {model.max_tokens} tokens that "
                    f'{model.name} reads; shorten them, or send "truncate": true',
                )
            results.append((model.units(tokens), tokens.lengths.tolist()))
        return results

    async def _while_connected(self, request: Request, work: asyncio.Future[Any]) -> None:
        """Wait for `work`; cancel it if the client goes away or the answer takes too long."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                {work, watch}, timeout=self.settings.answer_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if work.done():
                work.result()
            elif watch.done():
                raise ClientDisconnect
            else:
                raise HTTPError(503, "the answer took too long", {"retry-after": "1"})
        finally:
            watch.cancel()
            work.cancel()

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


def _parse(raw: bytes, kind: type[M], settings: ServeSettings) -> M:
    values = 2 * settings.max_sentences + 1000
    try:
        return validate_json(raw, kind, Bounds(settings.max_body_bytes, values, 1000))
    except ValueError as error:
        raise HTTPError(400, f"body: {error}") from None


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(), status, headers, "application/json")


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    return _json({"code": CODES[status], "message": message}, status, headers)
