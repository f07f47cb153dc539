"""Sampling text from a language model, one token at a time, with a KV cache.

Shapes: B samples, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from colakit.data.text import sentences
from colakit.data.tokens import SentenceTokenizer
from colakit.engine.device import Compute
from colakit.models.gpt import GPT, KVCache


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

    A sample that has stopped goes on with `stop_id`, and costs nothing any more once a third of those computed
    have stopped. Where the model's positions run out, the oldest half of the text is forgotten and the rest
    read again.

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
            hidden = model.transformer(unread, cache)[:, -1]  # (B, D)
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


def sample_sentences(
    model: GPT,
    tokenizer: SentenceTokenizer,
    beginnings: Sequence[str],
    *,
    compute: Compute,
    rng: random.Random,
    generator: torch.Generator,
    temperature: float = 1.0,
    batch_size: int = 512,
    max_new_tokens: int = 32,
) -> Iterator[str]:
    """Yield sampled sentences without end; one that is not complete after `max_new_tokens` is left out.

    Each begins after the end-of-text token, with up to half of the words of one of `beginnings`. It is
    complete where the model ends the text, or begins another sentence.

    Args:
        rng: draws the beginnings.
        generator: draws the tokens.
    """
    stop = tokenizer.end_of_text_id
    while True:
        heads = [_beginning(rng.choice(beginnings), rng) for _ in range(8 * batch_size)]
        for prompts in _prompts(tokenizer, heads, batch_size):
            tokens = generate_tokens(
                model,
                torch.tensor(prompts),
                max_new_tokens=max_new_tokens,
                compute=compute,
                temperature=temperature,
                stop_id=stop,
                generator=generator,
            )
            added = torch.stack(list(tokens), dim=1).tolist()
            for prompt, new in zip(prompts, added, strict=True):
                if (text := _first_sentence(tokenizer, prompt[1:], new)) is not None:
                    yield text


def _beginning(sentence: str, rng: random.Random) -> str:
    words = sentence.split()
    return " ".join(words[: rng.randint(0, len(words) // 2)])


def _prompts(
    tokenizer: SentenceTokenizer, heads: Sequence[str], batch_size: int
) -> Iterator[list[list[int]]]:
    """Yield the heads' tokens after the end-of-text token, in batches of one length."""
    encoded = tokenizer.encode(heads)
    rows = [encoded.sentence(i).tolist() if head else [] for i, head in enumerate(heads)]
    for _, alike in itertools.groupby(sorted(rows, key=len), key=len):
        found = [[tokenizer.end_of_text_id, *row] for row in alike]
        yield from (found[start : start + batch_size] for start in range(0, len(found), batch_size))


def _first_sentence(tokenizer: SentenceTokenizer, head: list[int], new: list[int]) -> str | None:
    """Return what was said before the end of text, or before a second sentence; None where neither came."""
    ended = tokenizer.end_of_text_id in new
    said = new[: new.index(tokenizer.end_of_text_id)] if ended else new
    found = sentences(tokenizer.decode([*head, *said]).strip())
    return " ".join(found[0].split()) if ended or len(found) > 1 else None


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
