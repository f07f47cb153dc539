"""`colakit data`: fetch CoLA, write the built-in corpus or corrupted sentences, check a corpus."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from colakit.api.session import Session
from colakit.cli.options import TextsArgument, command
from colakit.errors import ColakitError


@command("fetch")
def data_fetch_command(session: Session) -> dict[str, Any]:
    """Download CoLA into the cache and verify every file."""
    from colakit.data.fetch import COLA_URL, cola_folder, fetch_cola, is_fetched

    session.check_out()
    cache = session.out or session.cache_folder
    was_cached = is_fetched(cache)
    if session.dry_run:
        session.reporter.result(
            f"{'already in cache' if was_cached else 'would fetch'}: {COLA_URL} in {cola_folder(cache)}"
        )
    else:
        fetch_cola(cache, session.settings.data.mirrors)
        session.reporter.result(
            f"CoLA {'was already' if was_cached else 'is now'} in {cola_folder(cache)}, checksums verified"
        )
    return {"folder": str(cola_folder(cache)), "was_cached": was_cached}


@command("write", {"--data": "data.path"}, defaults={"data.path": "builtin"})
def data_write_command(session: Session) -> dict[str, Any]:
    """Write the built-in corpus to --out: CoLA's three files, and the minimal pairs of its dev splits."""
    from colakit.data.builtin.corpus import BUILTIN_NAMES, PAIRS_FILE, VERSION, write_builtin
    from colakit.data.corpus_files import COLA_FILES

    path = session.settings.data.path
    if "data.path" in session.resolved.origins and path not in BUILTIN_NAMES:
        raise ColakitError(
            f"--data {path}: only the built-in corpus can be written",
            hint="Run `colakit data write --data builtin --out FOLDER`",
        )
    if session.out is None:
        raise ColakitError("data write: no folder given", hint="Name one with --out.")
    session.check_out()
    names = [*COLA_FILES.values(), PAIRS_FILE]
    if not session.dry_run:
        write_builtin(session.out)
    verb = "would write" if session.dry_run else "wrote"
    session.reporter.result(f"{verb} {', '.join(names)} in {session.out}")
    return {"folder": str(session.out), "files": names, "version": VERSION}


@command("corrupt", {"--sentences": "real_fake.sentences"})
def data_corrupt_command(
    session: Session,
    *,
    texts: TextsArgument = None,
) -> dict[str, Any]:
    """Write a table of real sentences of TEXT and a corrupted copy of each to --out, replacing it.

    A student that has learned to tell them apart (`train-scratch --data TABLE`) can start `distill`:
    --set student.init_from=RUN.
    """
    from colakit.api.corrupt import corrupt

    return corrupt(session, texts=texts or [])


@command("check", {"--data": "data.path"})
def data_check_command(
    session: Session,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if there is a warning.")] = False,
) -> dict[str, Any]:
    """Report labels, majority rates, duplicates, contradictions and overlap between splits."""
    from colakit.data.checks import check_corpus, label_warnings
    from colakit.evaluation.tables import percent

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
    warnings = [text for check in checks for text in check.warnings()] + label_warnings(corpus.label_names)
    for text in warnings:
        session.reporter.warn(text)
    if strict and warnings:
        raise ColakitError(
            f"--strict: {len(warnings)} warnings", hint="Correct the data, or remove --strict."
        )
    return {"corpus": corpus.name, "splits": [asdict(check) for check in checks], "warnings": warnings}
