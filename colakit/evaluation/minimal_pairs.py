"""Accuracy of a language model on minimal pairs, from the log-probabilities of their sentences.

Shapes: N pairs, S sentences, B batch, T tokens, D width, V vocabulary, M predicted tokens of a batch.

A pair counts as correct if the acceptable sentence has the higher log-probability (Marvin and Linzen 2018,
arXiv:1808.09031). Ties count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colakit.data.batches import pad
from colakit.data.tokens import Tokens, plan_inference
from colakit.evaluation.metrics import CONFIDENCE, Interval
from colakit.evaluation.tables import Table, format_interval, percent
from colakit.inference.forward import evaluating
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

MAX_BATCH_TOKENS = 16_384  # the widest activations, 4·D, then take 200 MiB for GPT-2 small
MAX_LOGITS = 2**22  # 16 MiB of logits at a time; larger blocks do not fit the CPU cache

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of the two sentences of N pairs.

    Attributes:
        good, bad: (N,) log-probability in nats, summed over the predicted tokens.
        good_tokens, bad_tokens: (N,) number of predicted tokens.
    """

    good: Scores
    bad: Scores
    good_tokens: NDArray[np.int64]
    bad_tokens: NDArray[np.int64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,): the acceptable sentence has the higher summed log-probability."""
        return self.good > self.bad

    @property
    def correct_per_token(self) -> NDArray[np.bool_]:
        """(N,): the same for the mean log-probability of a token, which does not depend on the length."""
        # cross-multiplied, so that equal sums over equal counts remain equal
        return self.good * np.maximum(self.bad_tokens, 1) > self.bad * np.maximum(self.good_tokens, 1)

    @property
    def num_ties(self) -> int:
        """Number of pairs with equal sums."""
        return int((self.good == self.bad).sum())


@dataclass(frozen=True)
class Accuracy:
    """Fraction of the pairs that a model gets right, 0 to 1.

    Attributes:
        summed: by summed log-probability, with its 95 % interval.
        per_token: by mean log-probability per token.
    """

    summed: Interval
    per_token: float


@dataclass(frozen=True)
class PairResult:
    """Results of one language model on all pairs.

    Attributes:
        model: its name.
        groups: field -> group -> accuracy.
        num_truncated: sentences that were truncated to the model's context length, at most two per pair.
    """

    model: str
    all: Accuracy
    groups: dict[str, dict[str, Accuracy]]
    num_ties: int
    num_truncated: int

    def macro(self, field: str) -> tuple[float, float]:
        """Return the unweighted means over a field's groups, of the summed and the per-token accuracy."""
        groups = self.groups[field].values()
        return fmean(group.summed.value for group in groups), fmean(group.per_token for group in groups)

    def as_dict(self) -> dict[str, Any]:
        """Return the results as plain data."""
        return {
            "model": self.model,
            **asdict(self.all),
            "ties": self.num_ties,
            "truncated": self.num_truncated,
            "groups": {
                field: {name: asdict(group) for name, group in groups.items()}
                for field, groups in self.groups.items()
            },
            "macro": {
                field: dict(zip(("summed", "per_token"), self.macro(field), strict=True))
                for field in self.groups
            },
        }


def score_pairs(
    model: GPT,
    good: Tokens,
    bad: Tokens,
    compute: Compute,
    batch_size: int = 128,
    advance: Callable[[int], object] = lambda sentences: None,
) -> PairScores:
    """Return the log-probabilities of N pairs; the model must have been placed on `compute`.

    A sentence that occurs in several pairs is computed once, so that its score is the same in all of them.

    Args:
        good, bad: N sentences each. The first token of a sentence is given, not predicted.
        advance: called with the number of sentences that a batch completed, 2·N in all.
    """
    rows = [tokens.sentence(i) for tokens in (good, bad) for i in range(len(tokens))]
    numbers: dict[bytes, int] = {}
    inverse = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])  # (2·N,)
    first, counts = np.unique(inverse, return_index=True, return_counts=True)[1:]
    distinct = Tokens.pack([rows[i] for i in first])
    scores = np.zeros(len(distinct))
    for index, sums in _log_probabilities(model, distinct, compute, batch_size):
        scores[index] = sums
        advance(int(counts[index].sum()))
    scores = scores[inverse]
    return PairScores(scores[: len(good)], scores[len(good) :], good.lengths - 1, bad.lengths - 1)


def _log_probabilities(
    model: GPT, tokens: Tokens, compute: Compute, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Scores]]:
    """Yield (indices of sentences (B,), their summed log-probabilities (B,)), shortest sentences first."""
    with evaluating(model):
        for planned in plan_inference(tokens.lengths, batch_size):
            rows = max(1, MAX_BATCH_TOKENS // int(tokens.lengths[planned].max()))
            for start in range(0, len(planned), rows):
                index = planned[start : start + rows]
                yield index, _summed(model, *pad(tokens, index), compute)


def _summed(model: GPT, input_ids: Tensor, attention_mask: Tensor, compute: Compute) -> Scores:
    """Return Σ log p(token | tokens to its left), (B,), over all tokens but padding and the first.

    The output layer is applied to blocks of tokens, so that the full (B, T, V) logits are never in memory.
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
        for states, labels in zip(hidden.split(size), targets.split(size), strict=True):
            logits = model.lm_logits(states).float()  # (block, V)
            logprobs.append(logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(dim=1))
    sums = torch.zeros(len(input_ids), dtype=torch.float64)
    sums.index_add_(0, predicted.nonzero()[:, 0], torch.cat(logprobs).cpu().double())
    return sums.numpy()


def accuracy(scores: PairScores, indices: NDArray[np.int64] | None = None) -> Accuracy:
    """Return the accuracy on all pairs, or on those at `indices`, which must not be empty."""
    from scipy.stats import binomtest

    index = slice(None) if indices is None else indices
    correct = scores.correct[index]
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(CONFIDENCE, method="wilson")
    summed = Interval(float(correct.mean()), float(interval.low), float(interval.high))
    return Accuracy(summed, float(scores.correct_per_token[index].mean()))


def pair_tables(
    sizes: Mapping[str, Mapping[str, int]], total: int, results: Sequence[PairResult]
) -> list[Table]:
    """Return a table for each field, or one of all pairs if there is no field.

    Args:
        sizes: field -> group -> number of pairs.
        total: number of pairs.
    """
    prefixes = [f"{result.model}: " if len(results) > 1 else "" for result in results]
    columns = [prefix + name for prefix in prefixes for name in ("accuracy %", "per token %")]
    last = ["all", str(total), *_cells([result.all for result in results])]
    tables: list[Table] = []
    for field, groups in sizes.items():
        rows = [
            [group, str(size), *_cells([result.groups[field][group] for result in results])]
            for group, size in groups.items()
        ]
        macro = [percent(value) for result in results for value in result.macro(field)]
        rows += [["mean of groups", "", *macro], last]
        tables.append((f"pairs by {field}", [field, "pairs", *columns], rows))
    return tables or [("pairs", ["group", "pairs", *columns], [last])]


def _cells(accuracies: Sequence[Accuracy]) -> list[str]:
    return [
        cell
        for each in accuracies
        for cell in (format_interval(each.summed, 100, 2), percent(each.per_token))
    ]
