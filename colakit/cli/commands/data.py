"""`colakit data`: fetch CoLA, write the built-in corpus, check any."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from colakit.api.session import Session
from colakit.data.builtin.corpus import BUILTIN_NAMES, PAIRS_FILE, VERSION, write_builtin
from colakit.data.checks import check_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.fetch import COLA_URL, cola_folder, fetch_cola, is_fetched
from colakit.errors import ColakitError
from colakit.evaluation.tables import percent


def run(session: Session, *, action: str, strict: bool = False) -> dict[str, Any]:
    """Do what `action`, fetch, write or check, asks for."""
    if action == "write":
        return _write(session)
    return _fetch(session) if action == "fetch" else _check(session, strict)


def _fetch(session: Session) -> dict[str, Any]:
    session.check_out()
    cache = session.out or session.cache_folder
    had = is_fetched(cache)
    if session.dry_run:
        session.reporter.result(f"{'have' if had else 'would fetch'} {COLA_URL} in {cola_folder(cache)}")
    else:
        fetch_cola(cache, session.settings.data.mirrors)
        session.reporter.result(
            f"CoLA {'was' if had else 'is now'} in {cola_folder(cache)}, its checksums verified"
        )
    return {"folder": str(cola_folder(cache)), "was_cached": had}


def _write(session: Session) -> dict[str, Any]:
    path = session.settings.data.path
    if "data.path" in session.resolved.origins and path not in BUILTIN_NAMES:
        raise ColakitError(
            f"--data {path}: is not made here; only the built-in corpus is written",
            hint="Run `colakit data write --data builtin --out FOLDER`",
        )
    if session.out is None:
        raise ColakitError("data write: no folder to write to", hint="Name one with --out.")
    session.check_out()
    names = [*COLA_FILES.values(), PAIRS_FILE]
    if not session.dry_run:
        write_builtin(session.out)
    verb = "would write" if session.dry_run else "wrote"
    session.reporter.result(f"{verb} {', '.join(names)} in {session.out}")
    return {"folder": str(session.out), "files": names, "version": VERSION}


def _check(session: Session, strict: bool) -> dict[str, Any]:
    corpus = session.load_corpus()
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
    session.reporter.table(corpus.name, columns, rows)
    warnings = [text for check in checks for text in check.warnings()]
    for text in warnings:
        session.reporter.warn(text)
    if strict and warnings:
        raise ColakitError(
            f"--strict: {len(warnings)} warnings", hint="Mend the data, or leave --strict out."
        )
    return {"corpus": corpus.name, "splits": [asdict(check) for check in checks], "warnings": warnings}
