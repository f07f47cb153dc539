"""Sampling text from a language model, one token at a time, with a KV cache.

Shapes: B samples, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colakit.models.gpt.attention import KVCache
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute


@torch.inference_mode()  # as a decorator it is off while the consumer runs; a `with` in a generator is not
def generate_tokens(
    model: GPT,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    compute: Compute,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token (B,) of every sample until all have stopped or `max_new_tokens` are out.

    A sample that has stopped goes on with `stop_id`, and costs nothing any more once a third of those
    computed have stopped. Where the model's positions run out, the oldest half of the text is forgotten and
    the rest read again.

    Args:
        prompt: (B, T) int64, T ≥ 1.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens only.
        top_p: keep the likeliest tokens whose probabilities add up to p (Holtzman et al. 2020,
            arXiv:1904.09751).
        stop_id: token that ends a sample.
        generator: source of randomness, on the CPU.
    """
    positions = model.config.num_positions
    text = prompt[:, -positions:].to(compute.device)
    room = min(positions, text.shape[1] + max_new_tokens)
    going = torch.arange(len(text), device=compute.device)  # samples that `text` and `cache` still have
    stopped = torch.zeros(len(text), dtype=torch.bool, device=compute.device)
    cache = KVCache(model.config, len(text), room, compute.device, compute.dtype)
    unread = text
    for _ in range(max_new_tokens):
        if cache.length + unread.shape[1] > positions:
            unread = text = text[:, -(positions // 2) :]
            cache = KVCache(model.config, len(text), positions, compute.device, compute.dtype)
        with compute.autocast():
            hidden = model.transformer.forward_cached(unread, cache)[:, -1]  # (B, D)
            logits = model.lm_logits(hidden).float()  # (B, V)
        unread = sample(logits, temperature, top_k, top_p, generator)[:, None]
        text = torch.cat([text, unread], dim=1)
        if stop_id is None:
            yield unread[:, 0]
            continue
        tokens = torch.full_like(stopped, stop_id, dtype=torch.long)
        tokens[going] = torch.where(stopped[going], stop_id, unread[:, 0])
        yield tokens
        stopped = tokens == stop_id
        kept = (~stopped[going]).nonzero()[:, 0]
        if not len(kept):
            return
        if 3 * len(kept) <= 2 * len(going):
            going, text, unread = going[kept], text[kept], unread[kept]
            cache.keep(kept)


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Return one token (B,) for each row of (B, V) logits."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)  # the likeliest token always stays
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    reached = logits.softmax(dim=-1).cumsum(dim=-1)  # one uniform number a row, not one for each token
    drawn = torch.rand(len(logits), 1, generator=generator).to(logits.device) * reached[:, -1:]
    found = torch.searchsorted(reached, drawn, right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)
