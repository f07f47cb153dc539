"""Loading of the corpus that the data settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from colakit.config.data import DataSettings
from colakit.data.builtin.corpus import BUILTIN_NAMES, builtin_corpus
from colakit.data.columnar import HUB_PREFIX
from colakit.data.corpora import Corpus, load_corpus
from colakit.data.fetch import cola_folder, fetch_cola, is_fetched
from colakit.data.labelled_rows import Columns
from colakit.data.tables import Reading
from colakit.errors import ColakitError, nearest
from colakit.utils.console import Reporter


def load_dataset(
    data: DataSettings, cache_folder: Path, reporter: Reporter, *, before_fetch: Callable[[], object] | None
) -> Corpus:
    """Return the built-in corpus, CoLA (downloaded to `cache_folder` if needed) or a corpus from files.

    Args:
        before_fetch: called before CoLA is downloaded; None: it may not be downloaded.

    Raises:
        ColakitError: if the corpus is missing, malformed, or cannot or may not be downloaded.
    """
    path = data.path
    if not data.splits and path in BUILTIN_NAMES:
        return builtin_corpus()
    exists = data.splits or path.startswith(HUB_PREFIX) or Path(path).expanduser().exists()
    if path == "cola" and not exists:
        path = str(cola_folder(cache_folder))
        if not is_fetched(cache_folder):
            if before_fetch is None:
                raise ColakitError(
                    "CoLA is not downloaded", hint="Run `colakit data fetch`, or name a corpus with --data."
                )
            before_fetch()
            reporter.say("downloading CoLA")
            fetch_cola(cache_folder, data.mirrors)
    elif not exists and (near := nearest(path, ("cola", "builtin"))):
        raise ColakitError(f"{path}: file not found. Did you mean {near}?", hint="Check --data.")
    columns = None
    if data.text_column is not None:
        columns = Columns(data.text_column, data.label_column, data.split_column)
    corpus = load_corpus(
        path, files=data.splits, columns=columns, label_names=data.label_names, reading=Reading.of(data)
    )
    for note in corpus.notes:
        reporter.say(f"note: {note}")
    return corpus
