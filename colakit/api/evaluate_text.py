"""Evaluation of language models on running text, in bits per byte.

Unlike the loss per token, bits per byte compare models with different vocabularies. Every token is predicted
once, from the tokens before it in its slice of `num_positions` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colakit.api.recorded_data import refuse_classifier_flags
from colakit.api.session import Session
from colakit.data.running_text import Vocabulary, encode_text, text_files
from colakit.data.windows import slices
from colakit.errors import ColakitError
from colakit.evaluation.tables import Table, print_tables, write_results
from colakit.inference.forward import bits_per_byte
from colakit.inference.language_models import Loaders, language_model_loaders


def evaluate_text(session: Session, models: Sequence[str], texts: Sequence[Path]) -> dict[str, Any]:
    """Measure bits per byte of each text under each language model; print a table, return the results.

    With `session.out`, text.json and text.md are written there. No model is trained.

    Args:
        models: adapters, runs, checkpoints or bases; empty for the base of the settings.
        texts: text files (plain, .gz, .xz) or folders of them.

    Raises:
        ColakitError: if a model or a text cannot be read, or a result is not finite.
    """
    unread = ("evaluate.group_by", "evaluate.pairs_bos")
    refuse_classifier_flags(session, "--text", "the text takes the place of a dataset", *unread)
    session.check_out()
    files = {str(path): text_files(path) for path in texts}
    loaders = language_models(session, models)
    if session.dry_run:
        session.reporter.result(
            f"would measure {', '.join(files)} with {', '.join(loaders)} ({session.compute})"
        )
        return {"models": list(loaders), "texts": list(files), "compute": str(session.compute)}
    results: dict[str, dict[str, float]] = {}
    for name, load in loaders.items():
        model, tokenizer = load()
        session.compute.place(model.requires_grad_(False))
        vocabulary = Vocabulary.of(tokenizer)
        results[name] = {}
        for text, paths in files.items():
            stream = encode_text(paths, tokenizer, session.arrays)
            batches = slices(stream, vocabulary, model.config.num_positions, tokenizer.end_of_text_id)
            value = results[name][text] = bits_per_byte(model, batches, session.compute)
            if not math.isfinite(value):
                raise ColakitError(f"{text}: bits per byte are {value}", hint="Try --precision fp32.")
    rows = [[name, *(f"{value:.4f}" for value in values.values())] for name, values in results.items()]
    table: Table = ("bits per byte", ["model", *files], rows)
    print_tables([table], session.reporter)
    content = {
        "texts": list(files),
        "models": [{"model": name, "bits_per_byte": values} for name, values in results.items()],
    }
    write_results(session.out, "text", content, [table], session.reporter)
    return content


def language_models(session: Session, models: Sequence[str]) -> Loaders:
    """Return loaders of `models`, and of the base if the settings name one or `models` is empty."""
    named, typed = "base" in session.resolved.origins, session.resolved.was_typed("base")
    base, start = session.settings.base, session.settings.start_token
    return language_model_loaders(models, base, base_named=named, base_typed=typed, start_token=start)
