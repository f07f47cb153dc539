"""Accuracy of a language model on minimal pairs, from the log-probabilities of their sentences.

Shapes: N pairs, S sentences, B batch, T tokens, D width, V vocabulary, M predicted tokens of a batch.

A pair counts as correct if the acceptable sentence has the higher log-probability (Marvin and Linzen 2018,
arXiv:1808.09031). Ties count as wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colakit.data.batches import pad
from colakit.data.tokens import Tokens, plan_inference
from colakit.evaluation.metrics import Interval, wilson_interval
from colakit.evaluation.tables import Table, format_interval, percent
from colakit.inference.forward import evaluating
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

MAX_BATCH_TOKENS = 16_384  # the widest activations, 4·D, then take 200 MiB for GPT-2 small
MAX_LOGITS = 2**22  # 16 MiB of logits at a time; larger blocks do not fit the CPU cache

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities (nats) of the sentences of N pairs, and numbers of predicted tokens; all (N,)."""

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
        """(N,): the same for the mean log-probability of a token."""
        # cross-multiplied, so that equal sums over equal counts remain equal
        return self.good * np.maximum(self.bad_tokens, 1) > self.bad * np.maximum(self.good_tokens, 1)

    @property
    def num_ties(self) -> int:
        """Number of pairs with equal sums."""
        return int((self.good == self.bad).sum())


@dataclass(frozen=True)
class Accuracy:
    """Fraction of correct pairs, 0 to 1: by summed log-probability, and by its mean per token."""

    summed: Interval
    per_token: float


@dataclass(frozen=True)
class PairResult:
    """Results of one language model on all pairs."""

    model: str
    all: Accuracy
    groups: dict[str, dict[str, Accuracy]]  # field -> group -> accuracy
    num_ties: int
    num_truncated: int  # sentences

    def macro(self, field: str) -> tuple[float, float]:
        """Return the unweighted means over a field's groups, of the summed and the per-token accuracy."""
        groups = self.groups[field].values()
        return fmean(group.summed.value for group in groups), fmean(group.per_token for group in groups)

    def as_dict(self) -> dict[str, Any]:
        """Return the results as plain data."""
        macro = {f: dict(zip(("summed", "per_token"), self.macro(f), strict=True)) for f in self.groups}
        return {
            "model": self.model,
            **asdict(self.all),
            "ties": self.num_ties,
            "truncated": self.num_truncated,
            "groups": asdict(self)["groups"],
            "macro": macro,
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
    with evaluating(model):
        for planned in plan_inference(distinct.lengths, batch_size):
            size = max(1, MAX_BATCH_TOKENS // int(distinct.lengths[planned].max()))
            for start in range(0, len(planned), size):
                index = planned[start : start + size]
                scores[index] = _summed(model, *pad(distinct, index), compute)
                advance(int(counts[index].sum()))
    scores = scores[inverse]
    return PairScores(scores[: len(good)], scores[len(good) :], good.lengths - 1, bad.lengths - 1)


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
        hidden = model.body(input_ids[:, :-1].to(compute.device))  # (B, T - 1, D)
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
    index = slice(None) if indices is None else indices
    correct = scores.correct[index]
    summed = wilson_interval(int(correct.sum()), len(correct))
    return Accuracy(summed, float(scores.correct_per_token[index].mean()))


def pair_tables(
    sizes: Mapping[str, Mapping[str, int]], total: int, results: Sequence[PairResult]
) -> list[Table]:
    """Return a table for each field, or one of all pairs if there is no field.

    Args:
        sizes: field -> group -> number of pairs.
        total: number of pairs.
    """

    def row(name: str, size: int, accuracies: Sequence[Accuracy]) -> list[str]:
        cells = [(format_interval(each.summed, 100, 2), percent(each.per_token)) for each in accuracies]
        return [name, str(size), *itertools.chain(*cells)]

    prefixes = [f"{result.model}: " if len(results) > 1 else "" for result in results]
    columns = ["pairs", *(prefix + name for prefix in prefixes for name in ("accuracy %", "per token %"))]
    last = row("all", total, [result.all for result in results])
    tables: list[Table] = []
    for field, groups in sizes.items():
        rows = [
            row(name, size, [each.groups[field][name] for each in results]) for name, size in groups.items()
        ]
        macro = [percent(value) for result in results for value in result.macro(field)]
        rows += [["mean of groups", "", *macro], last]
        tables.append((f"pairs by {field}", [field, *columns], rows))
    return tables or [("pairs", ["group", *columns], [last])]
