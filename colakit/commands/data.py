"""`colakit data`: fetch CoLA, check a corpus."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from colakit.commands.task import percent
from colakit.context import Context
from colakit.data.checks import check_corpus
from colakit.data.fetch import COLA_URL, cola_folder, fetch_cola, is_fetched
from colakit.errors import ColakitError


def run(context: Context, *, action: str, strict: bool = False) -> dict[str, Any]:
    """Do what `action`, fetch or check, asks for."""
    return _fetch(context) if action == "fetch" else _check(context, strict)


def _fetch(context: Context) -> dict[str, Any]:
    context.check_out()
    cache = context.out or context.cache_folder
    had = is_fetched(cache)
    if context.dry_run:
        context.reporter.result(f"{'have' if had else 'would fetch'} {COLA_URL} in {cola_folder(cache)}")
    else:
        fetch_cola(cache, context.settings.data.mirrors)
        context.reporter.result(
            f"CoLA {'was' if had else 'is now'} in {cola_folder(cache)}, its checksums verified"
        )
    return {"folder": str(cola_folder(cache)), "was_cached": had}


def _check(context: Context, strict: bool) -> dict[str, Any]:
    corpus = context.load_corpus()
    checks = check_corpus(corpus)
    rows = [
        [
            check.name,
            f"{check.rows:,}",
            *(f"{check.counts[name]:,}" if check.counts else "-" for name in corpus.label_names),
            percent(check.majority_rate) if check.majority_rate is not None else "",
            str(check.duplicate_rows),
            str(check.conflicting_sentences),
            str(check.in_train),
        ]
        for check in checks
    ]
    columns = ["split", "rows", *corpus.label_names, "majority %", "duplicates", "conflicts", "in train"]
    context.reporter.table(corpus.name, columns, rows)
    warnings = [text for check in checks for text in check.warnings()]
    for text in warnings:
        context.reporter.warn(text)
    if strict and warnings:
        raise ColakitError(
            f"--strict: {len(warnings)} warnings", hint="Mend the data, or leave --strict out."
        )
    return {"corpus": corpus.name, "splits": [asdict(check) for check in checks], "warnings": warnings}
