"""Log-probabilities of sentences under a language model, and what they say about minimal pairs.

Shapes: N sentences or pairs, B batch, T tokens, D width, V vocabulary, M predicted tokens of a batch.

A model is right about a pair where it gives the acceptable sentence the higher log-probability (Marvin and
Linzen 2018, arXiv:1808.09031). Equal log-probabilities are no preference and count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colakit.data.batches import pad
from colakit.data.tokens import Tokens, plan_inference
from colakit.evaluation.metrics import CONFIDENCE, Interval
from colakit.inference.forward import evaluating
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

MAX_BATCH_TOKENS = 16_384  # of the widest activations, 4·D, that is 200 MiB for GPT-2 small
MAX_LOGITS = 2**22  # of the output layer at a time, 16 MiB: larger blocks fall out of the CPU's cache

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class PairScores:
    """What a language model gives the two sentences of N pairs.

    Attributes:
        good, bad: (N,) log-probability in nats, summed over the predicted tokens.
        good_tokens, bad_tokens: (N,) how many tokens that sum is over.
    """

    good: Scores
    bad: Scores
    good_tokens: NDArray[np.int64]
    bad_tokens: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which pairs have the higher sum on the acceptable sentence, (N,)."""
        return self.good > self.bad

    @property
    def right_per_token(self) -> NDArray[np.bool_]:
        """The same for the mean over tokens, which takes out that longer sentences are less likely."""
        # cross-multiplied, so that equal sums over equal counts stay equal
        return self.good * np.maximum(self.bad_tokens, 1) > self.bad * np.maximum(self.good_tokens, 1)

    @property
    def num_ties(self) -> int:
        """Pairs whose sums are equal."""
        return int((self.good == self.bad).sum())


@dataclass(frozen=True)
class Accuracy:
    """Shares of pairs that a model is right about.

    Attributes:
        summed: by summed log-probability, with its 95 % interval.
        per_token: by mean log-probability of a token.
    """

    summed: Interval
    per_token: float


def score_pairs(
    model: GPT,
    good: Tokens,
    bad: Tokens,
    compute: Compute,
    batch_size: int = 128,
    advance: Callable[[int], object] = lambda sentences: None,
) -> PairScores:
    """Return the log-probabilities of N pairs; the model must have been placed on `compute`.

    A sentence that stands in several pairs is computed once, so that it cannot differ from itself.

    Args:
        good, bad: N sentences each. The first token of each is given, not predicted.
        advance: told how many sentences of the 2·N are done, as they are.
    """
    rows = [tokens.sentence(i) for tokens in (good, bad) for i in range(len(tokens))]
    numbers: dict[bytes, int] = {}
    place = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])  # (2·N,)
    first = np.unique(place, return_index=True)[1]
    distinct = Tokens.pack([rows[i] for i in first])
    uses = np.bincount(place)
    found = np.zeros(len(distinct))
    for index, sums in _log_probabilities(model, distinct, compute, batch_size):
        found[index] = sums
        advance(int(uses[index].sum()))
    scores = found[place]
    return PairScores(scores[: len(good)], scores[len(good) :], good.lengths - 1, bad.lengths - 1)


def _log_probabilities(
    model: GPT, tokens: Tokens, compute: Compute, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Scores]]:
    """Yield (sentence numbers (B,), their summed log-probabilities (B,)), shortest sentences first."""
    with evaluating(model):
        for planned in plan_inference(tokens.lengths, batch_size):
            rows = max(1, MAX_BATCH_TOKENS // int(tokens.lengths[planned].max()))
            for start in range(0, len(planned), rows):
                index = planned[start : start + rows]
                yield index, _summed(model, *pad(tokens, index), compute)


def _summed(model: GPT, input_ids: Tensor, attention_mask: Tensor, compute: Compute) -> Scores:
    """Return Σ log p(token | what stands left of it), (B,), over all real tokens but the first of each row.

    The full (B, T, V) log-softmax is never held: of the logits, a block of tokens at a time.
    """
    predicted = attention_mask[:, 1:].bool()  # (B, T - 1)
    if not predicted.any():
        return np.zeros(len(input_ids))
    targets = input_ids[:, 1:][predicted].to(compute.device)  # (M,)
    logprobs: list[Tensor] = []
    with compute.autocast():
        hidden = model.transformer(input_ids[:, :-1].to(compute.device))  # (B, T - 1, D)
        hidden = hidden[predicted.to(compute.device)]  # (M, D)
        size = max(1, MAX_LOGITS // model.config.vocab_size)
        for states, answers in zip(hidden.split(size), targets.split(size), strict=True):
            logits = model.lm_logits(states).float()  # (block, V)
            logprobs.append(logits.gather(1, answers[:, None])[:, 0] - logits.logsumexp(dim=1))
    sums = torch.zeros(len(input_ids), dtype=torch.float64)
    sums.index_add_(0, predicted.nonzero()[:, 0], torch.cat(logprobs).cpu().double())
    return sums.numpy()


def accuracy(scores: PairScores, chosen: NDArray[np.int64] | None = None) -> Accuracy:
    """Return how often the model is right, about all pairs or those at `chosen`, of which there is one."""
    from scipy.stats import binomtest

    index = slice(None) if chosen is None else chosen
    right = scores.right[index]
    found = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
    summed = Interval(float(right.mean()), float(found.low), float(found.high))
    return Accuracy(summed, float(scores.right_per_token[index].mean()))
