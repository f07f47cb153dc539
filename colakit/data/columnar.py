"""Readers of Parquet files and of datasets in the Hugging Face format, in batches of rows."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from colakit.data.json_records import Record
from colakit.errors import ColakitError, first_line
from colakit.utils.documents import library_errors
from colakit.utils.extras import import_extra

BATCH = 256  # rows in memory at a time
HUB_PREFIX = "hf:"


@contextlib.contextmanager
def open_parquet(file: IO[bytes], where: str) -> Iterator[tuple[Any, Iterator[Record]]]:
    """Yield the Arrow schema and the rows of a Parquet file; one that cannot seek is unpacked to disk."""
    with tempfile.TemporaryFile() as unpacked:
        if not file.seekable():
            shutil.copyfileobj(file, unpacked)
        with library_errors(where, hint="Is it a Parquet file? Write it again."):
            parquet = import_extra("pyarrow.parquet", "data")
            table = parquet.ParquetFile(file if file.seekable() else unpacked)
        yield table.schema_arrow, _parquet_rows(table, where)


def _parquet_rows(table: Any, where: str) -> Iterator[Record]:
    with library_errors(where, hint="Is it a Parquet file? Write it again."):
        batches = table.iter_batches(batch_size=BATCH)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset.

    Attributes:
        schema: its Arrow schema.
        class_names: column -> names of its classes, for columns of class numbers.
        rows: classes are given by name, None if they are missing.
    """

    schema: Any
    class_names: Mapping[str, tuple[str, ...]]
    rows: Iterator[Record]


def open_hub(name: str) -> dict[str, HubSplit]:
    """Return the splits of `hf:NAME[/CONFIG][:SPLIT]`, from the hub, its cache or a local folder.

    Raises:
        ColakitError: if the dataset or the split does not exist, or cannot be downloaded.
    """
    library = import_extra("datasets", "data")
    library.disable_progress_bars()
    path, colon, split = name.removeprefix(HUB_PREFIX).partition(":")
    errors = []
    for words in _candidates(path):
        try:
            loaded = library.load_dataset(*words)
        except Exception as error:  # of the library, of pyarrow, of the network
            errors.append(first_line(error))
            continue
        if colon and split not in loaded:
            raise ColakitError(f"{name}: no split {split!r}", hint=f"It has {', '.join(loaded)}.")
        return {key: _hub_split(part) for key, part in loaded.items() if not colon or key == split}
    raise ColakitError(
        f"{name}: cannot be loaded ({errors[0]})",
        hint="Write hf:NAME or hf:NAME/CONFIG; without a network, the dataset must be in the hub's cache.",
    )


def _candidates(path: str) -> list[tuple[str, ...]]:
    """Return the arguments of `load_dataset` that a path may mean."""
    parent, _, last = path.rpartition("/")
    if Path(path).expanduser().exists():
        return [(str(Path(path).expanduser()),)]
    if parent and (path.count("/") > 1 or Path(parent).expanduser().exists()):
        return [(str(Path(parent).expanduser()), last)]
    return [(path,), (parent, last)] if parent else [(path,)]


def _hub_split(dataset: Any) -> HubSplit:
    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if hasattr(feature, "names")
    }

    def rows() -> Iterator[Record]:
        for number, row in enumerate(dataset, start=1):
            for column, classes in names.items():
                index = row[column]
                row[column] = classes[index] if index is not None and 0 <= index < len(classes) else None
            yield number, row

    return HubSplit(dataset.features.arrow_schema, names, rows())
