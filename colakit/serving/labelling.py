"""From the sentences of a request to logits: tokens, limits, batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from colakit.config.serve import ServeSettings
from colakit.serving.batcher import Logits, QueueFullError
from colakit.serving.http import HTTPError
from colakit.serving.models import ServedModel

INLINE_CHARACTERS = 2**13  # texts up to this length are tokenized in the event loop, in about a millisecond


async def compute_logits(
    request: Request,
    models: Sequence[ServedModel],
    sentences: Sequence[str],
    settings: ServeSettings,
    *,
    truncate: bool,
) -> list[tuple[list[Logits], int]]:
    """Return each model's logits of the sentences, and its number of tokens."""
    if len(sentences) * len(models) > settings.max_sentences:
        raise HTTPError(
            413,
            f"{len(sentences):,} sentences for {len(models):,} models; sentences times models may be "
            f"{settings.max_sentences:,}",
        )
    if sum(map(len, sentences)) <= INLINE_CHARACTERS:
        encoded = _encode(models, sentences, truncate)
    else:
        encoded = await run_in_threadpool(_encode, models, sentences, truncate)
    num_tokens = sum(sum(costs) for _, costs in encoded)
    if num_tokens > settings.max_request_tokens:
        raise HTTPError(413, f"{num_tokens:,} tokens; a request may have {settings.max_request_tokens:,}")
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
        await _while_connected(request, asyncio.ensure_future(compute_all()), settings.answer_seconds)
    except QueueFullError as full:
        wait = {"retry-after": str(full.seconds)}
        raise HTTPError(429, "too many sentences wait; try again later", wait) from None
    return [(outputs[i], sum(encoded[i][1])) for i in range(len(models))]


def _encode(
    models: Sequence[ServedModel], sentences: Sequence[str], truncate: bool
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


async def _while_connected(request: Request, work: asyncio.Future[Any], seconds: float) -> None:
    """Wait for `work`; cancel it if the client goes away or the answer takes too long."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        elif watch.done():
            raise ClientDisconnect
        else:
            raise HTTPError(503, "the answer took too long", {"retry-after": "1"})
    finally:
        watch.cancel()
        work.cancel()
