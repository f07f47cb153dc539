"""Evaluation of language models on minimal pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.api.evaluate_text import language_models
from colakit.api.recorded_data import refuse_classifier_flags
from colakit.api.session import Session
from colakit.data.minimal_pairs import MinimalPair, find_pair_files, group_pairs, read_pairs
from colakit.data.tokenizer import SentenceTokenizer
from colakit.evaluation.metrics import indices_by_value
from colakit.evaluation.minimal_pairs import PairResult, accuracy, pair_tables, score_pairs
from colakit.evaluation.tables import print_tables, write_results
from colakit.models.gpt.model import GPT
from colakit.runtime.device import Compute

Groups = Mapping[str, Mapping[str, NDArray[np.int64]]]  # field -> group -> indices of its pairs


def evaluate_pairs(session: Session, models: Sequence[str], pairs: Sequence[Path]) -> dict[str, Any]:
    """Measure the accuracy of language models on minimal pairs; print the tables, return the results.

    With `session.out`, pairs.json and pairs.md are written there. No model is trained: a fine-tuned
    classifier is evaluated as its body with the token embedding as output layer. `--precision auto` means
    fp32: bf16 changes the difference of a pair by 0.05 nats (standard deviation; docs/experiments.md), as
    much as the difference of a hard pair.

    Args:
        models: adapters, runs, checkpoints or bases; empty for the base of the settings.
        pairs: files of pairs (JSON lines; .gz, .xz) or folders of them.

    Raises:
        ColakitError: if a model or a file cannot be read, or no pair has a field of `evaluate.group_by`.
    """
    refuse_classifier_flags(session, "--pairs", "the pairs take the place of a dataset")
    session.check_out()
    settings, reporter = session.settings.evaluate, session.reporter
    files = find_pair_files(pairs)
    minimal_pairs = read_pairs(files)
    fields = group_pairs(minimal_pairs, settings.group_by)
    groups = {field: indices_by_value(values) for field, values in fields.items()}
    compute = session.compute
    if session.settings.precision == "auto" and compute.dtype != torch.float32:
        reason = "needed for close pairs; --precision bf16 is faster"
        compute = Compute(compute.device, torch.float32, reason)
    if identical := sum(pair.good == pair.bad for pair in minimal_pairs):
        reporter.warn(
            f"{identical} of {len(minimal_pairs)} pairs have two equal sentences: ties, which count as wrong"
        )
    loaders = language_models(session, models)
    inputs = {"files": [str(file) for file in files], "pairs": len(minimal_pairs)}
    if session.dry_run:
        by = f", by {', '.join(groups)}" if groups else ""
        where = f"{len(files)} files" if len(files) > 1 else str(files[0])
        names = ", ".join(loaders)
        reporter.result(f"would score {len(minimal_pairs)} pairs of {where} with {names}{by} ({compute})")
        counts = {field: len(by_group) for field, by_group in groups.items()}
        return {"models": list(loaders), **inputs, "groups": counts, "compute": str(compute)}
    results = [
        _evaluate(session, name, *load(), minimal_pairs, groups, compute) for name, load in loaders.items()
    ]
    sizes = {field: {name: len(index) for name, index in by.items()} for field, by in groups.items()}
    tables = pair_tables(sizes, len(minimal_pairs), results)
    print_tables(tables, reporter)
    content = {
        **inputs,
        "bos": settings.pairs_bos,
        "group_sizes": sizes,
        "models": [result.as_dict() for result in results],
    }
    write_results(session.out, "pairs", content, tables, reporter)
    return content


def _evaluate(
    session: Session,
    name: str,
    model: GPT,
    tokenizer: SentenceTokenizer,
    pairs: Sequence[MinimalPair],
    groups: Groups,
    compute: Compute,
) -> PairResult:
    """Score all pairs with one model, and warn about truncated, tied and unscored ones."""
    settings, warn = session.settings.evaluate, session.reporter.warn
    compute.place(model.requires_grad_(False))
    max_tokens = model.config.num_positions + 1  # the last token is predicted, but no input
    tokenizer = tokenizer.with_boundaries(prefix=settings.pairs_bos)
    good = tokenizer.encode([pair.good for pair in pairs], max_tokens)
    bad = tokenizer.encode([pair.bad for pair in pairs], max_tokens)
    with session.reporter.progress(f"{name}, sentences", 2 * len(pairs)) as bar:
        scores = score_pairs(model, good, bad, compute, settings.batch_size, bar.advance)
    result = PairResult(
        model=name,
        all=accuracy(scores),
        groups={
            field: {group: accuracy(scores, index) for group, index in by_group.items()}
            for field, by_group in groups.items()
        },
        num_ties=scores.num_ties,
        num_truncated=good.num_truncated + bad.num_truncated,
    )
    if result.num_truncated:
        warn(
            f"{name}: {result.num_truncated} of {2 * len(pairs)} sentences are longer than {max_tokens} "
            "tokens (end-of-text token included) and were truncated; only the first tokens are scored"
        )
    if result.num_ties:
        warn(f"{name}: {result.num_ties} of {len(pairs)} pairs are ties, which count as wrong")
    if unscored := int((scores.good_tokens == 0).sum() + (scores.bad_tokens == 0).sum()):
        warn(f"{name}: {unscored} sentences have a single token and nothing to predict; they score 0")
    return result
