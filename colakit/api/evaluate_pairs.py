"""`colakit evaluate --pairs`: which sentence of a minimal pair a language model finds likelier.

Nothing is tuned: the base is asked, and so are tuned models, whose language model is the adapted body read
out through the token embedding. `--precision auto` means fp32 here: bf16 moves the difference of a pair by
0.05 nats (standard deviation), and pairs that a model finds hard are close (figures in docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.api.session import Session
from colakit.data.minimal_pairs import MinimalPair, find_pair_files, group_pairs, read_pairs
from colakit.data.tokenizer import SentenceTokenizer
from colakit.data.tokens import Tokens
from colakit.evaluation.minimal_pairs import Accuracy, PairScores, accuracy, score_pairs
from colakit.evaluation.tables import Table, interval, keep, show
from colakit.inference.language_models import Loaders, named_language_models, refuse_flags_of_corpora
from colakit.runtime.device import Compute
from colakit.training.task_data import percent

ALL, MACRO = "all", "mean of groups"


@dataclass(frozen=True)
class Result:
    """What one language model makes of all pairs.

    Attributes:
        model: how people call it.
        groups: field -> group -> its accuracy.
        num_truncated: sentences, of two a pair, that were cut to the model's positions.
    """

    model: str
    all: Accuracy
    groups: dict[str, dict[str, Accuracy]]
    num_ties: int
    num_truncated: int

    def macro(self, field: str) -> tuple[float, float]:
        """Return the plain means over a field's groups, by sum and per token."""
        found = self.groups[field].values()
        return fmean(a.summed.value for a in found), fmean(a.per_token for a in found)


def run(session: Session, *, models: Sequence[str], pairs: Sequence[Path]) -> dict[str, Any]:
    """Print a table for each grouping; with `--out`, also write pairs.json and pairs.md there."""
    refuse_flags_of_corpora(session, "--pairs", "pairs bring their sentences along")
    session.check_out()
    files = find_pair_files(pairs)
    found = read_pairs(files)
    groups = group_pairs(found, session.settings.evaluate.group_by)
    compute = _compute(session)
    _note_identical(session, found)
    asked = named_language_models(session, models)
    if session.dry_run:
        return _plan(session, asked, files, found, groups, compute)
    results = _ask_all(session, asked, found, groups, compute)
    sizes = {field: {g: len(index) for g, index in _members(groups[field]).items()} for field in groups}
    tables = [_table(field, sizes[field], len(found), results) for field in groups]
    tables = tables or [("pairs", *_overall(len(found), results))]
    show(session, tables)
    answer = _answer(session, files, sizes, len(found), results)
    keep(session, "pairs", answer, tables)
    return answer


def _compute(session: Session) -> Compute:
    if session.settings.precision != "auto" or session.compute.dtype == torch.float32:
        return session.compute
    return Compute(session.compute.device, torch.float32, "close pairs need it; --precision bf16 is faster")


def _note_identical(session: Session, pairs: Sequence[MinimalPair]) -> None:
    if same := sum(pair.good == pair.bad for pair in pairs):
        session.reporter.warn(
            f"{same} of {len(pairs)} pairs are a sentence and itself: ties, counted as wrong"
        )


def _plan(
    session: Session,
    asked: Loaders,
    files: Sequence[Path],
    pairs: Sequence[MinimalPair],
    groups: Mapping[str, Sequence[str]],
    compute: Compute,
) -> dict[str, Any]:
    by = f", by {', '.join(groups)}" if groups else ""
    where = f"{len(files)} files" if len(files) > 1 else str(files[0])
    session.reporter.result(
        f"would score {len(pairs)} pairs of {where} with {', '.join(asked)}{by} ({compute})"
    )
    return {
        "models": list(asked),
        "files": [str(file) for file in files],
        "pairs": len(pairs),
        "groups": {field: len(set(values)) for field, values in groups.items()},
        "compute": str(compute),
    }


def _ask_all(
    session: Session,
    asked: Loaders,
    pairs: Sequence[MinimalPair],
    groups: Mapping[str, Sequence[str]],
    compute: Compute,
) -> list[Result]:
    """Score the pairs with every model, of which one is loaded at a time."""
    members = {field: _members(values) for field, values in groups.items()}
    results: list[Result] = []
    for name, load in asked.items():
        model, tokenizer = load()
        compute.place(model.requires_grad_(False))
        longest = model.config.num_positions + 1  # the last token is predicted, never read
        good, bad = _encode(session, tokenizer, pairs, longest)
        with session.reporter.progress(f"{name}, sentences", 2 * len(pairs)) as bar:
            scores = score_pairs(model, good, bad, compute, session.settings.evaluate.batch_size, bar.advance)
        found = {
            field: {group: accuracy(scores, index) for group, index in by_group.items()}
            for field, by_group in members.items()
        }
        truncated = good.num_truncated + bad.num_truncated
        results.append(Result(name, accuracy(scores), found, scores.num_ties, truncated))
        _warn(session, results[-1], scores, longest)
    return results


def _encode(
    session: Session, tokenizer: SentenceTokenizer, pairs: Sequence[MinimalPair], longest: int
) -> tuple[Tokens, Tokens]:
    reader = SentenceTokenizer(
        tokenizer.backend, tokenizer.end_of_text_id, prefix=session.settings.evaluate.pairs_bos
    )
    good, bad = (reader.encode([getattr(pair, side) for pair in pairs], longest) for side in ("good", "bad"))
    return good, bad


def _members(values: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return group -> the numbers of its pairs, in the order in which groups were found."""
    found: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(value, []).append(number)
    return {group: np.array(numbers) for group, numbers in found.items()}


def _warn(session: Session, result: Result, scores: PairScores, longest: int) -> None:
    warn, total = session.reporter.warn, len(scores.good)
    if result.num_truncated:
        warn(
            f"{result.model}: {result.num_truncated} of {2 * total} sentences are longer than {longest} "
            "tokens, the end-of-text token included, and were cut: what was cut off is not scored"
        )
    if result.num_ties:
        warn(f"{result.model}: {result.num_ties} of {total} pairs are ties, counted as wrong")
    if unscored := int((scores.good_tokens == 0).sum() + (scores.bad_tokens == 0).sum()):
        warn(
            f"{result.model}: {unscored} sentences are a single token, which nothing predicts; their sum is 0"
        )


def _table(field: str, sizes: Mapping[str, int], total: int, results: Sequence[Result]) -> Table:
    title, columns, overall = f"pairs by {field}", *_overall(total, results)
    rows = [
        [group, str(size), *(cell for result in results for cell in _cells(result.groups[field][group]))]
        for group, size in sizes.items()
    ]
    macro = [percent(value) for result in results for value in result.macro(field)]
    return title, [field, *columns[1:]], [*rows, [MACRO, "", *macro], *overall]


def _overall(total: int, results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the columns, and the row of all pairs."""
    whose = [f"{result.model}: " if len(results) > 1 else "" for result in results]
    columns = [f"{name}{what}" for name in whose for what in ("accuracy %", "per token %")]
    cells = [cell for result in results for cell in _cells(result.all)]
    return ["group", "pairs", *columns], [[ALL, str(total), *cells]]


def _cells(found: Accuracy) -> list[str]:
    return [interval(found.summed, 100, 2), percent(found.per_token)]


def _answer(
    session: Session,
    files: Sequence[Path],
    sizes: Mapping[str, Mapping[str, int]],
    total: int,
    results: Sequence[Result],
) -> dict[str, Any]:
    models = [
        {
            "model": result.model,
            **asdict(result.all),
            "ties": result.num_ties,
            "truncated": result.num_truncated,
            "groups": {
                field: {group: asdict(found) for group, found in by_group.items()}
                for field, by_group in result.groups.items()
            },
            "macro": {
                field: dict(zip(("summed", "per_token"), result.macro(field), strict=True)) for field in sizes
            },
        }
        for result in results
    ]
    return {
        "files": [str(file) for file in files],
        "pairs": total,
        "bos": session.settings.evaluate.pairs_bos,
        "group_sizes": {field: dict(by_group) for field, by_group in sizes.items()},
        "models": models,
    }
