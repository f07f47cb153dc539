"""`colakit evaluate --text`: in how many bits a language model writes each byte of running text.

Nothing is tuned. Unlike loss per token, bits per byte compare models with different vocabularies. Every token
counts once, given what stands before it in its slice of `num_positions` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colakit.api.session import Session
from colakit.data.running_text import Vocabulary, encode_text, text_files
from colakit.data.windows import slices
from colakit.errors import ColakitError
from colakit.evaluation.tables import Table, keep, show
from colakit.inference.forward import bits_per_byte
from colakit.inference.language_models import LanguageModel, named_language_models, refuse_flags_of_corpora


def run(session: Session, *, models: Sequence[str], texts: Sequence[Path]) -> dict[str, Any]:
    """Print a table; with `--out`, also write text.json and text.md there."""
    refuse_flags_of_corpora(session, "--text", "text brings its sentences along", "evaluate.group_by")
    session.check_out()
    files = {str(path): text_files(path) for path in texts}
    asked = named_language_models(session, models)
    if session.dry_run:
        session.reporter.result(f"would read {', '.join(files)} with {', '.join(asked)} ({session.compute})")
        return {"models": list(asked), "texts": list(files), "compute": str(session.compute)}
    found = {name: _measure(session, load(), files) for name, load in asked.items()}
    rows = [[name, *(f"{value:.4f}" for value in measured.values())] for name, measured in found.items()]
    table: Table = ("bits per byte", ["model", *files], rows)
    show(session, [table])
    answer = {
        "texts": list(files),
        "models": [{"model": name, "bits_per_byte": measured} for name, measured in found.items()],
    }
    keep(session, "text", answer, [table])
    return answer


def _measure(session: Session, loaded: LanguageModel, files: dict[str, list[Path]]) -> dict[str, float]:
    """Return bits per byte of each text under one model."""
    model, tokenizer = loaded
    session.compute.place(model.requires_grad_(False))
    facts = Vocabulary.of(tokenizer)
    found = {}
    for name, paths in files.items():
        stream = encode_text(paths, tokenizer, session.arrays)
        batches = slices(stream, facts, model.config.num_positions, tokenizer.end_of_text_id)
        found[name] = bits_per_byte(model, batches, session.compute)
        if not found[name] < float("inf"):
            raise ColakitError(f"{name}: bits per byte are {found[name]}", hint="Try --precision fp32.")
    return found
