"""Loading of the corpus that the data settings name."""

from __future__ import annotations

from pathlib import Path

from colakit.config.data import DataSettings
from colakit.data.builtin.corpus import BUILTIN_NAMES, builtin_corpus
from colakit.data.corpora import Columns, Corpus, load_corpus
from colakit.data.fetch import cola_folder, fetch_cola, is_fetched
from colakit.errors import ColakitError, nearest
from colakit.utils.console import Reporter


def load_dataset(data: DataSettings, cache_folder: Path, reporter: Reporter, *, may_fetch: bool) -> Corpus:
    """Return the built-in corpus, CoLA (downloaded to `cache_folder` if needed) or a corpus from files.

    Args:
        may_fetch: whether CoLA may be downloaded.

    Raises:
        ColakitError: if the corpus is missing, malformed, or cannot or may not be downloaded.
    """
    if not data.splits and data.path in BUILTIN_NAMES:
        return builtin_corpus()
    path = Path(data.path).expanduser()
    if not data.splits and data.path == "cola" and not path.exists():
        path = cola_folder(cache_folder)
        if not is_fetched(cache_folder):
            if not may_fetch:
                raise ColakitError(
                    "CoLA is not downloaded", hint="Run `colakit data fetch`, or name a corpus with --data."
                )
            reporter.say("downloading CoLA")
            fetch_cola(cache_folder, data.mirrors)
    if not data.splits and not path.exists() and (near := nearest(data.path, ("cola", "builtin"))):
        raise ColakitError(f"{path}: file not found. Did you mean {near}?", hint="Check --data.")
    files = {name: Path(file).expanduser() for name, file in data.splits.items()}
    columns = Columns(data.text_column, data.label_column) if data.text_column else None
    return load_corpus(path, files=files, columns=columns, label_names=data.label_names or None)
