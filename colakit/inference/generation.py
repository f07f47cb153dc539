"""Text generation with a KV cache, one token at a time.

Shapes: B samples, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colakit.models.gpt.attention import KVCache
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute


@torch.inference_mode()  # a `with` inside a generator would also cover the consumer's code
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
    """Yield the next token (B,) of every sample until all have stopped or `max_new_tokens` were yielded.

    A stopped sample yields `stop_id`. Stopped samples are dropped from the batch once they are a third of it.
    When the model's positions run out, the older half of the text is dropped and the rest encoded again.

    Args:
        prompt: (B, T) int64, T ≥ 1.
        temperature: divides the logits; 0 is greedy.
        top_k: sample from the k most likely tokens.
        top_p: sample from the most likely tokens whose probabilities sum to p (nucleus sampling, Holtzman et
            al. 2020, arXiv:1904.09751).
        stop_id: token that ends a sample.
        generator: on the CPU.
    """
    positions = model.config.num_positions
    text = prompt[:, -positions:].to(compute.device)
    capacity = min(positions, text.shape[1] + max_new_tokens)
    active = torch.arange(len(text), device=compute.device)  # samples still in `text` and `cache`
    stopped = torch.zeros(len(text), dtype=torch.bool, device=compute.device)
    cache = KVCache(model.config, len(text), capacity, compute.device, compute.dtype)
    unread = text
    for _ in range(max_new_tokens):
        if cache.length + unread.shape[1] > positions:
            unread = text = text[:, -(positions // 2) :]
            cache = KVCache(model.config, len(text), positions, compute.device, compute.dtype)
        with compute.autocast():
            hidden = model.body.forward_cached(unread, cache)[:, -1]  # (B, D)
            logits = model.lm_logits(hidden).float()  # (B, V)
        unread = sample(logits, temperature, top_k, top_p, generator)[:, None]
        text = torch.cat([text, unread], dim=1)
        if stop_id is None:
            yield unread[:, 0]
            continue
        tokens = torch.full_like(stopped, stop_id, dtype=torch.long)
        tokens[active] = torch.where(stopped[active], stop_id, unread[:, 0])
        yield tokens
        stopped = tokens == stop_id
        kept = (~stopped[active]).nonzero()[:, 0]
        if not len(kept):
            return
        if 3 * len(kept) <= 2 * len(active):
            active, text, unread = active[kept], text[kept], unread[kept]
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
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)  # always keeps the most likely token
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)  # inverse-CDF sampling: one uniform draw per row
    drawn = torch.rand(len(logits), 1, generator=generator).to(logits.device) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, drawn, right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)
