"""Readers of Parquet files and of datasets in the Hugging Face format, in batches of rows."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from colakit.data.delimited import MAX_LINE
from colakit.data.json_records import Record
from colakit.errors import ColakitError, first_line
from colakit.utils.documents import library_errors
from colakit.utils.extras import import_extra
from colakit.utils.unpacking import MAX_RATIO, max_unpacked

BATCH = 256  # rows in memory at a time
HUB_PREFIX = "hf:"


@contextlib.contextmanager
def open_parquet(file: IO[bytes], where: str) -> Iterator[tuple[Any, Iterator[Record]]]:
    """Yield the Arrow schema and the rows of a Parquet file; one that cannot seek is unpacked to disk."""
    with tempfile.TemporaryFile() as unpacked:
        if not file.seekable():
            shutil.copyfileobj(file, unpacked)
        source = file if file.seekable() else unpacked
        with library_errors(where, hint="Is it a Parquet file? Write it again."):
            arrow, parquet = import_extra("pyarrow", "data"), import_extra("pyarrow.parquet", "data")
            table = parquet.ParquetFile(source)
            _check_size(table.metadata, source, where)
            schema = table.schema_arrow
            texts = [column.name for column in schema if _is_text(arrow.types, column.type)]
            # as a dictionary, a text that is repeated a million times is held once
            table = parquet.ParquetFile(source, read_dictionary=texts)
        yield schema, _parquet_rows(table, texts, where)


def _is_text(types: Any, column: Any) -> bool:
    if types.is_dictionary(column):
        column = column.value_type
    return types.is_string(column) or types.is_large_string(column) or types.is_binary(column)


def _check_size(metadata: Any, source: IO[bytes], where: str) -> None:
    # `column(i)` would also tell, but aborts the process on some damaged files
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    # a row is a byte at least, though equal ones take none in the file
    if max(unpacked, metadata.num_rows) > (limit := max_unpacked(source.seek(0, os.SEEK_END))):
        raise ColakitError(
            f"{where}: it unpacks to more than {limit >> 20} MiB, {MAX_RATIO} times its size",
            hint="Write it again without compression.",
        )


def _parquet_rows(table: Any, texts: Sequence[str], where: str) -> Iterator[Record]:
    compute = import_extra("pyarrow.compute", "data")
    number = 0
    with library_errors(where, hint="Is it a Parquet file? Write it again."):
        for batch in table.iter_batches(batch_size=BATCH):
            for name in texts:
                lengths = compute.binary_length(batch.column(name).dictionary)
                if (compute.max(lengths).as_py() or 0) > MAX_LINE:
                    raise ValueError(f"a text is longer than {MAX_LINE >> 20} MiB")
            for row in batch.to_pylist():
                number += 1
                yield number, row


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
