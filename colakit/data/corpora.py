"""Corpora of labelled sentences: CoLA as published, GLUE's CoLA, and tables of one's own.

A corpus is read from a zip, a folder or files. CoLA's splits are called `train`, `id_dev` (in-domain) and
`ood_dev` (out-of-domain); GLUE's `train`, `dev` and `test`; a single file is the split `train`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from colakit.data.tables import Row, column_index, raise_faults, read_rows, require_columns
from colakit.errors import ColakitError, did_you_mean

COLA_FILES = {
    "train": "in_domain_train.tsv",
    "id_dev": "in_domain_dev.tsv",
    "ood_dev": "out_of_domain_dev.tsv",
}
GLUE_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
COLA_LABELS = ("unacceptable", "acceptable")
TABLE_ENDINGS = (".tsv", ".csv", ".txt")
MAX_MEMBER_BYTES = 256 * 2**20  # of one file inside a zip, unpacked
BROKEN_ZIP = (  # what zipfile lets out on damaged bytes
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Split:
    """Sentences in file order.

    Attributes:
        name: how people call the split.
        sentences: N texts.
        labels: (N,) int64 indices into the corpus's label names, or None where the split is unlabelled.
        sources: N codes of where a sentence comes from (CoLA's first column); empty where unknown.
    """

    name: str
    sentences: tuple[str, ...]
    labels: NDArray[np.int64] | None = None
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sentences)

    def take(self, index: NDArray[np.int64], name: str) -> Split:
        """Return the rows at `index` as a split of their own."""
        return Split(
            name,
            tuple(self.sentences[i] for i in index),
            None if self.labels is None else self.labels[index],
            tuple(self.sources[i] for i in index) if self.sources else (),
        )

    def require_labels(self) -> NDArray[np.int64]:
        """Return the labels, or raise `ColakitError` where there are none."""
        if self.labels is None:
            raise ColakitError(f"split {self.name!r} has no labels", hint="Use `colakit predict` on it.")
        return self.labels

    def fingerprint(self) -> str:
        """Return a SHA-256 over sentences and labels."""
        digest = hashlib.sha256(json.dumps(self.sentences).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Named splits over one set of labels.

    Attributes:
        name: where it came from.
        label_names: C names; a label is an index into them.
        splits: by name, in the order they were found.
    """

    name: str
    label_names: tuple[str, ...]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Return a split; `dev`, where the corpus has several dev sets, is all of them together."""
        if name in self.splits:
            return self.splits[name]
        parts = [split for key, split in self.splits.items() if key.endswith("_dev")]
        if name == "dev" and parts:
            return join_splits("dev", parts)
        raise ColakitError(
            f"{self.name}: no split {name!r}.{did_you_mean(name, self.splits)}",
            hint="Name a split with --split, or give the file with --set data.splits.NAME=FILE",
        )

    def relabelled(self, label_names: tuple[str, ...]) -> Corpus:
        """Return the corpus with labels numbered as in `label_names`, if these hold all of its own."""
        if not set(self.label_names) <= set(label_names):
            return self
        places = np.array([label_names.index(name) for name in self.label_names], dtype=np.int64)
        splits = {
            name: replace(split, labels=None if split.labels is None else places[split.labels])
            for name, split in self.splits.items()
        }
        return Corpus(self.name, label_names, splits)

    def report_splits(self) -> list[str]:
        """Return the labelled splits that are for reporting: all but `train`, unless there is no other."""
        labelled = [name for name, split in self.splits.items() if split.labels is not None]
        return [name for name in labelled if name != "train"] or labelled


def join_splits(name: str, parts: Sequence[Split]) -> Split:
    """Return labelled splits as one."""
    return Split(
        name,
        tuple(sentence for part in parts for sentence in part.sentences),
        np.concatenate([part.require_labels() for part in parts]),
        tuple(source for part in parts for source in part.sources),
    )


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table with a header."""

    text: str
    label: str | None


def load_corpus(
    path: Path | None = None,
    *,
    files: Mapping[str, Path] | None = None,
    columns: Columns | None = None,
    label_names: Sequence[str] | None = None,
) -> Corpus:
    """Read a corpus.

    Args:
        path: a zip, a folder or one file.
        files: split name -> file, instead of `path`.
        columns: names of the text and label columns; None means CoLA's or GLUE's layout.
        label_names: the labels in the order of their indices; by default what stands in the files, sorted.

    Raises:
        ColakitError: if anything is missing, empty or malformed, naming the file and the line.
    """
    if files:
        contents = {name: (str(file), _file_reader(Path(file))) for name, file in files.items()}
        name = ", ".join(str(file) for file in files.values())
    else:
        assert path is not None
        contents, name = _find_splits(path), str(path)
    rows = {split: (where, read_rows(read(), where)) for split, (where, read) in contents.items()}
    for where, found in rows.values():
        if not found:
            raise ColakitError(f"{where}: is empty", hint="A split needs at least one sentence.")
    if columns is None:
        return Corpus(
            name, COLA_LABELS, {s: _cola_split(s, found, where) for s, (where, found) in rows.items()}
        )
    return _table_corpus(name, rows, columns, label_names)


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ColakitError(
                f"{path}: {error.strerror}", hint="Check the path given with --data."
            ) from error

    return read


def _find_splits(path: Path) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return split name -> (what to call the file, how to read it)."""
    if path.is_dir():
        members = {
            file.relative_to(path).as_posix(): _file_reader(file)
            for file in sorted(path.rglob("*.tsv"))
            if file.is_file()
        }
    elif zipfile.is_zipfile(path):
        members = _zip_members(path)
    elif path.suffix.lower() in TABLE_ENDINGS:
        return {"train": (str(path), _file_reader(path))}
    elif path.exists():
        raise ColakitError(f"{path}: is no zip, folder, TSV or CSV", hint="--data takes one of these.")
    else:
        raise ColakitError(
            f"{path}: not there", hint="--data takes `cola`, `builtin`, a zip, a folder, a TSV or a CSV."
        )
    found = _match_layout(members)
    if not found:
        wanted = f"{', '.join(COLA_FILES.values())} (CoLA) or {', '.join(GLUE_FILES.values())} (GLUE)"
        raise ColakitError(
            f"{path}: holds none of {wanted}", hint="Name files of your own: --set data.splits.train=FILE"
        )
    return {split: (f"{path}/{member}", members[member]) for split, member in found.items()}


def _match_layout(members: Mapping[str, object]) -> dict[str, str]:
    """Return split name -> member, for CoLA's layout or GLUE's, whichever lies nearer to the top.

    Raw text is preferred to tokenized.
    """
    layouts = [_matches(layout, members) for layout in (COLA_FILES, GLUE_FILES)]
    whole = [found for found in layouts if "train" in found or len(found) > 1]
    return min(whole, key=lambda found: min(name.count("/") for name in found.values()), default={})


def _matches(layout: Mapping[str, str], members: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, filename in layout.items():
        candidates = [name for name in members if PurePosixPath(name).name == filename]
        candidates.sort(
            key=lambda name: (PurePosixPath(name).parent.name == "tokenized", name.count("/"), name)
        )
        if candidates:
            found[split] = candidates[0]
    return found


def _zip_members(path: Path) -> dict[str, Callable[[], bytes]]:
    def reader(member: str) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                    raw = file.read(MAX_MEMBER_BYTES + 1)
            except BROKEN_ZIP as error:
                raise ColakitError(f"{path}: {member} cannot be unpacked ({error})") from error
            if len(raw) > MAX_MEMBER_BYTES:
                raise ColakitError(f"{path}: {member} unpacks to more than {MAX_MEMBER_BYTES >> 20} MiB")
            return raw

        return read

    try:
        with zipfile.ZipFile(path) as archive:
            return {name: reader(name) for name in archive.namelist() if name.endswith(".tsv")}
    except BROKEN_ZIP as error:
        raise ColakitError(f"{path}: is a broken zip ({error})", hint="Download it again.") from error


def _cola_split(name: str, rows: list[Row], where: str) -> Split:
    """Read CoLA's columns (source, label, author's mark, sentence) or those of GLUE's test set."""
    if rows[0][1] == ["index", "sentence"]:
        require_columns(rows, 2, where)
        return Split(name, tuple(fields[1] for _, fields in _body(rows, where)))
    if len(rows[0][1]) != 4:
        raise ColakitError(
            f"{where}:1: {len(rows[0][1])} columns ({' | '.join(rows[0][1])[:60]}); CoLA has 4, no header",
            hint="For a table of your own name its columns: "
            "--set data.text_column=NAME --set data.label_column=NAME",
        )
    require_columns(rows, 4, where)
    faults = [(number, f"label {fields[1]!r}") for number, fields in rows if fields[1] not in ("0", "1")]
    raise_faults(faults, where, "the second column must be 0 or 1")
    labels = np.array([int(fields[1]) for _, fields in rows], dtype=np.int64)
    return Split(name, tuple(fields[3] for _, fields in rows), labels, tuple(fields[0] for _, fields in rows))


def _body(rows: list[Row], where: str) -> list[Row]:
    """Return the rows below the header."""
    if len(rows) < 2:
        raise ColakitError(f"{where}: has a header and no rows", hint="A split needs at least one sentence.")
    return rows[1:]


def _table_corpus(
    name: str, rows: Mapping[str, tuple[str, list[Row]]], columns: Columns, label_names: Sequence[str] | None
) -> Corpus:
    """Read tables with a header; train's labels are numbered in sorted order, as numbers if all are."""
    texts: dict[str, tuple[str, ...]] = {}
    raw_labels: dict[str, list[tuple[int, str]]] = {}
    for split, (where, found) in rows.items():
        header, body = found[0][1], _body(found, where)
        require_columns(found, len(header), where)
        text = column_index(header, columns.text, "data.text_column", where)
        texts[split] = tuple(fields[text] for _, fields in body)
        if columns.label is not None and (columns.label in header or split == "train"):
            label = column_index(header, columns.label, "data.label_column", where)
            raw_labels[split] = [(number, fields[label]) for number, fields in body]
            raise_faults(
                [(n, "no label") for n, v in raw_labels[split] if not v.strip()], where, "a label is needed"
            )
    naming = [raw_labels["train"]] if "train" in raw_labels else raw_labels.values()
    names = tuple(label_names or _sorted_labels({value for part in naming for _, value in part}))
    index = {label: position for position, label in enumerate(names)}
    splits: dict[str, Split] = {}
    for split, sentences in texts.items():
        labelled = raw_labels.get(split)
        if labelled is not None:
            faults = [(number, f"label {value!r}") for number, value in labelled if value not in index]
            raise_faults(faults, rows[split][0], f"labels must be among {', '.join(names)}")
        labels = (
            None if labelled is None else np.array([index[value] for _, value in labelled], dtype=np.int64)
        )
        splits[split] = Split(split, sentences, labels)
    return Corpus(name, names, splits)


def _sorted_labels(values: set[str]) -> list[str]:
    try:
        return sorted(sorted(values), key=float)  # `1` and `1.0` are two labels, in the same order every time
    except ValueError:
        return sorted(values)
