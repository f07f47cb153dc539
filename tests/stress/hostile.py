"""Fuzzes the readers of untrusted files: each case must return or raise `ColakitError`.

    python tests/stress/hostile.py --cases 20000        part of `make torture`

A case is the files of one folder: arbitrary bytes, valid files with changed bytes, or well-formed files with
wrong values. It is read under limits of time and memory, and every warning is an error. `test_hostile.py` is
the short form.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import operator
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from backports import zstd
from hostile_data import DATA_READERS, json_text
from hostile_gguf import gguf_cases, read_gguf
from hostile_schema import NUMBERS, altered, documents, json_of, torn
from hypothesis import strategies as st
from pydantic import BaseModel
from safetensors.torch import save as safetensors_of

from colakit.cli.app import main
from colakit.config.resolve import resolve
from colakit.config.settings import Settings
from colakit.config.yaml import to_yaml
from colakit.data.annotations import read_annotations
from colakit.data.corpora import Split, load_corpus
from colakit.data.corpus_files import COLA_FILES
from colakit.data.fetch import verified_files
from colakit.data.gguf import GgufCounts, GgufTensor
from colakit.data.gguf_tokenizer import GgufTokenizer
from colakit.data.labelled_rows import Columns
from colakit.data.minimal_pairs import PairRecord, group_pairs, read_pairs
from colakit.data.tokenizer import SentenceTokenizer, encode_cached, train_tokenizer
from colakit.data.tokenizer_files import (
    AnyDocument,
    SpecialTokens,
    TokenizerFile,
    TokenizerState,
    VocabularyFile,
)
from colakit.errors import ColakitError
from colakit.inference.classifier import SentenceClassifier, load_classifier, read_origin
from colakit.inference.numpy_predictor import StudentPredictor
from colakit.models.gpt.config import GPTConfig
from colakit.models.gpt.model import GPT
from colakit.models.lora import LoRAConfig, inject
from colakit.models.rnn.config import RNNConfig
from colakit.models.rnn.model import DistilRNN
from colakit.reports.pairs import PairsRecord, describe_pairs
from colakit.reports.sweep import SweepSummary, describe_sweep
from colakit.storage import checkpoints as checkpoint
from colakit.storage.checkpoints import MANIFEST, STATE, Checkpoints
from colakit.storage.gguf_file import GgufModel
from colakit.storage.gpt2 import AnyConfigFile, ConfigFile, ShardIndex, load_gpt, save_gpt
from colakit.storage.model_file import METADATA_KEY, BaselineMetadata, Companion, ModelMetadata, Origin
from colakit.storage.peft import AdapterConfig, apply_adapter, read_adapter, write_adapter
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_schemas import (
    ClassifierSummary,
    Environment,
    EvaluationRecord,
    MetricsFile,
    Predictions,
    ResultSummary,
    RunsRecord,
    StepRecord,
    Summary,
)
from colakit.storage.run_set import open_run_set
from colakit.storage.safetensors_header import SafetensorsHeader
from colakit.training.tracking import TrackedRuns
from colakit.utils.array_cache import ArrayCache

SECONDS = 20.0  # of processor time, limit of one case; ten times as long on the clock
BYTES = 2**29  # limit of additional address space
FOLDER = Path("case")

Files = dict[str, bytes]
Cases = st.SearchStrategy[Files]


@dataclass(frozen=True)
class Reader:
    """A function that reads untrusted files.

    Attributes:
        cases: strategy for its input files.
        read: reads the folder of a case.
        share: of the number of cases, if one takes long.
    """

    cases: Cases
    read: Callable[[Path], object]
    share: float = 1.0


# -- running a case


class TooLongError(Exception):
    """A case took longer than `SECONDS`."""


class TooMuchError(Exception):
    """A case tried to allocate more than `BYTES`, even if the reader handled the failure."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Apply the limits of time and memory."""

    def give_up(*_: object) -> None:
        raise TooLongError

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, give_up) for number in timers}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
        resource.setrlimit(resource.RLIMIT_AS, limits)


def outcome(reader: Reader, case: Files) -> str:
    """Return `result` or `refused`; raise in any other case."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, content in case.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_bytes(content)
    refusal: ColakitError | None = None
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read(FOLDER)
    except ColakitError as error:
        refusal = error
    if refusal is None:
        return "result"
    assert refusal.message
    assert refusal.exit_code == 2
    _raise_exceeded_limit(refusal)
    return "refused"


def _raise_exceeded_limit(error: BaseException | None) -> None:
    """Raise an exceeded limit that the reader caught and chained to its own error."""
    while error is not None:
        if isinstance(error, TooLongError):
            raise error
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise TooMuchError from error
        error = error.__cause__ or error.__context__


# -- mutations of valid files

DEEP = st.builds(lambda opening: opening * 50_000, st.sampled_from([b"[", b'{"a":']))


@st.composite
def mangled(draw: st.DrawFn, good: bytes) -> bytes:
    """Change, cut, repeat or insert bytes, up to five times."""
    raw = bytearray(good)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(raw)))
        match draw(st.integers(0, 5)):
            case 0 if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del raw[at:]
            case 2:
                del raw[at : at + draw(st.integers(1, 40))]
            case 3:
                raw[at:at] = draw(st.binary(min_size=1, max_size=12))
            case 4:  # a wrong size or count
                size = draw(st.sampled_from([2, 4, 8]))
                number = draw(st.sampled_from([0, 1, 2**7, 2**15 - 1, 2**31 - 1, 2**40, 2**63, 2**64 - 1]))
                raw[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
            case _:
                raw += raw[at : at + draw(st.integers(1, 200))]
    return bytes(raw)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """Return changed, unchanged or arbitrary bytes."""
    return mangled(good) | st.just(good) | st.binary(max_size=60)


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def members_of(archive: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def zipped(members: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive with valid checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return out.getvalue()


@st.composite
def repacked(draw: st.DrawFn, archive: bytes) -> bytes:
    """Change one member of an archive, with valid checksums."""
    members = members_of(archive)
    name = draw(st.sampled_from(sorted(members)))
    members[name] = draw(mangled(members[name]))
    return zipped(members, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


def tensors() -> st.SearchStrategy[torch.Tensor]:
    """Return tensors of unusual types and shapes, some with fewer stored elements than their shape."""
    kinds = [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8]
    shapes = st.lists(st.integers(0, 5), max_size=3)
    plain = st.builds(lambda shape, kind: torch.zeros(shape, dtype=kind), shapes, st.sampled_from(kinds))
    expanded = st.sampled_from([(2**20, 2**20), (2**40,), (5, 0, 2**30)]).map(torch.zeros(1).expand)
    odd = st.sampled_from([torch.full((3,), float("nan")), torch.zeros(2, 2).to_sparse()])
    return plain | expanded | odd


# -- valid files, made once


@functools.cache
def tokenizer() -> SentenceTokenizer:
    return train_tokenizer(["the cat sleeps . the dogs sleep ."] * 4, 280)


def gpt_config() -> GPTConfig:
    sizes = {"vocab_size": tokenizer().vocab_size, "num_positions": 8, "width": 8, "num_layers": 1}
    return GPTConfig(**sizes, num_heads=2)


LABELS = ("unacceptable", "acceptable")


@functools.cache
def folder_of(kind: str) -> Files:
    """Return the files of a valid base, adapter, checkpoint or classifier."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        GOOD[kind](Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


def _adapter(folder: Path) -> None:
    model = GPT(gpt_config()).classifier(2)
    config = LoRAConfig(rank=2, target_modules=("c_attn", "mlp.c_proj"))
    inject(model, config)
    write_adapter(model, folder, config, base="base")
    facts = {"label_names": LABELS, "max_tokens": 8, "threshold": 0.5, "origin": {"command": "finetune"}}
    (folder / "colakit.json").write_bytes(json_of({**facts, "prefix": True, "suffix": False}))


def _classifiers(folder: Path) -> None:
    (folder / "rnn").mkdir()
    (folder / "gpt").mkdir()
    student = DistilRNN(RNNConfig(tokenizer().vocab_size, embedding_size=4, hidden_size=4, num_embeddings=5))
    student.embed_only([1, 2, 3, 4])
    for name in COLA_FILES.values():
        (folder / name).write_bytes(CORPUS)
    settings, data = run_settings().model_dump(mode="json"), load_corpus(folder).fingerprints()
    origin = {"command": "distill", "seed": 0, "settings": settings, "data": data, "teachers": [{}]}
    SentenceClassifier(student, tokenizer(), LABELS, 8, 0.5, origin=origin).save(folder / "rnn/ckpt.pt")
    model, lora = GPT(gpt_config()).classifier(2), LoRAConfig(rank=2, target_modules=("c_attn",))
    inject(model, lora)
    SentenceClassifier(model, tokenizer(), LABELS, 8, None, lora).save(folder / "gpt/ckpt.pt")


def a_state(step: int) -> dict[str, Any]:
    weight = torch.arange(6.0).view(2, 3)
    optimizer = {"state": {0: {"exp_avg": weight}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "identity": {"seed": 0, "compute": "cpu"},
        "step": step,
        "progress": {
            **{"max_steps": 9, "loss_sum": 0.5, "count": step, "stale": 0},
            **{"best": None, "best_tensors": {}, "ema": {}},
        },
        "tensors": {"weight": weight},
        "optimizer": optimizer,
        "per_process": [[{"cpu": torch.zeros(16, dtype=torch.uint8)}, None]],
        "metrics_bytes": 0,
        "max_micro_batch_size": None,
        "graphs_failed": False,
    }


GOOD: dict[str, Callable[[Path], object]] = {
    "base": lambda folder: save_gpt(GPT(gpt_config()), folder),
    "adapter": _adapter,
    "classifiers": _classifiers,
    "checkpoints": lambda folder: [Checkpoints(folder).save(a_state(step)) for step in (2, 4)],
}

# -- cases of each reader

ROWS = b"a1\t1\t\tThe cat sleeps.\na1\t0\t*\tThe cat sleep.\nb2\t1\t\tDogs \xe2\x80\xa8 sleep.\r\n"
TABLE = b'text,mood\nfine,good\n"poor, ""she"" said",bad\nplain,neutral\n'
CELLS = st.sampled_from(
    ["0", "1", "2", "1.0", "", " ", "*", "The cat sleeps.", '"', "\u2028", "\ufeff", "é", "\0"]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", ""])
LINES = st.lists(
    st.tuples(st.lists(CELLS, min_size=1, max_size=6).map("\t".join), ENDS).map("".join), max_size=6
)


def table_cases() -> Cases:
    rows = LINES.map("".join).map(str.encode) | mutated(ROWS)
    own = mutated(TABLE) | LINES.map(lambda lines: "".join(["text\tmood\n", *lines]).encode())
    names = st.sampled_from(["own.csv", "own.tsv", "dev.csv"])
    tables = st.dictionaries(names, own, min_size=1, max_size=2)
    corpus = st.fixed_dictionaries({"in_domain_train.tsv": rows}, optional={"in_domain_dev.tsv": rows})
    return corpus | tables | st.fixed_dictionaries({"train.tsv": rows, "test.tsv": rows})


RECORDS = [
    {"text": text, "mood": mood} for text, mood in zip(["fine", "plain", "\u2028"], "xyx", strict=True)
]


def record_cases() -> Cases:
    """Return tables of JSON and Parquet, packed or not."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS * 9), out)
    lines = "\n".join(map(json.dumps, RECORDS)).encode()
    files = {
        "own.jsonl": mutated(lines) | altered(RECORDS).map(json_text).map(str.encode),
        "own.json": mutated(json.dumps(RECORDS, indent=1).encode()),
        "own.parquet": mangled(out.getvalue()),
        "own.jsonl.zst": mangled(zstd.compress(lines * 9)) | mutated(lines).map(zstd.compress),
        "own.parquet.gz": mangled(out.getvalue()).map(gzip.compress),
    }
    cases = [st.fixed_dictionaries({name: content}) for name, content in files.items()]
    return functools.reduce(operator.or_, cases)


def read_table(folder: Path) -> object:
    own = sorted(folder.glob("own.*")) + sorted(folder.glob("dev.*"))
    if not own:
        return load_corpus(folder)
    files = {path.name.partition(".")[0]: path for path in own}
    return load_corpus(files=files, columns=Columns("text", "mood"))


MARKS = b"Source\tDomain\tAcceptability\tSentence\tSimple\tCopula\na1\tIn\t1\tThe cat sleeps.\t1\t0\n"
MARK_CELLS = CELLS | st.sampled_from(["Source", "Acceptability", "Sentence", "Simple"])
MARK_LINES = st.lists(
    st.tuples(st.lists(MARK_CELLS, min_size=1, max_size=6).map("\t".join), ENDS).map("".join), max_size=6
)


def annotation_cases() -> Cases:
    body = LINES.map(lambda lines: MARKS + "".join(lines).encode())
    files = mutated(MARKS) | body | MARK_LINES.map("".join).map(str.encode)
    return st.fixed_dictionaries({"marks.tsv": files}) | st.fixed_dictionaries({"marks.csv": files})


def read_marks(folder: Path) -> object:
    annotations = read_annotations(next(folder.iterdir()))
    return annotations.parts(annotations.join(Split("dev", ("The cat sleeps.", "The cat sleeps."))))


CONFIG = b"""seed: 3
base: gpt2
lora: {rank: 4, alpha: 8, target_modules: [c_attn, c_fc]}
finetune:
  lr: 3e-4
  epochs: 2
data:
  splits: {train: a.tsv, dev: b.tsv}
"""
WORDS = (
    *("seed: ", "lora: ", "rank: ", "data: {", "splits: ", "finetune:\n  ", "lr: ", "{", "}", "[", "]", ", "),
    *(": ", "\n", "\n  ", "!!map ", "!!int ", "!!float ", "!!timestamp ", "!!set ", "!!omap ", "!!pairs "),
    *(
        "!!binary ",
        "!!python/object:os.system ",
        "!x ",
        "&a ",
        "*a",
        "2024-13-45",
        "0b_",
        "0x_",
        "1:99",
        "no",
    ),
    *(
        "~",
        "<<: ",
        "=",
        "? ",
        "- ",
        "|",
        ">",
        "'",
        '"',
        "#",
        "%YAML 9.9",
        "---\n",
        "...",
        "1",
        "3e-4",
        ".inf",
    ),
    *("\t", "\x07", "\ufeff", "\u2028", "é", "&a [*a, *a]", "a: &b {<<: *b}", "9" * 5000, "[" * 2000),
)


def yaml_cases() -> Cases:
    texts = st.lists(st.sampled_from(WORDS), max_size=14).map("".join).map(str.encode)
    bombs = st.integers(2, 40).map(aliases)
    flat = {"seed": 0, "lora": {"rank": 2, "target_modules": ["c_fc"]}, "data": {"splits": {}}}
    raw = mutated(CONFIG) | texts | bombs | altered(flat, Settings).map(json_of) | DEEP
    return st.fixed_dictionaries({"settings.yaml": raw})


def aliases(depth: int) -> bytes:
    lines = ["lora:", "  target_modules: &a0 [x, x]"]
    lines += [f"  k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"seed: *a{depth - 1}"]).encode()


def zip_cases() -> Cases:
    names = [
        *(f"raw/{name}" for name in COLA_FILES.values()),
        "../../evil.tsv",
        "/train.tsv",
        "tokenized/dev.tsv",
    ]
    texts = mutated(ROWS) | st.sampled_from([ROWS + b"\n" * 2**23, ROWS * 2**16])
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    members = st.dictionaries(st.sampled_from(names), mutated(ROWS), max_size=4)
    bombs = st.dictionaries(st.sampled_from(names[:1]), texts, min_size=1)
    packed = st.builds(zipped, members, st.sampled_from(methods)) | st.builds(
        zipped, bombs, st.just(zipfile.ZIP_DEFLATED)
    )
    good = [zipped({f"raw/{name}": ROWS for name in COLA_FILES.values()}, method) for method in methods]
    raw = packed | st.sampled_from(good).flatmap(mangled) | st.just(_overlapping())
    return st.fixed_dictionaries({"given.zip": raw})


def _overlapping() -> bytes:
    """Return an archive with a hundred directory entries for one member."""
    raw = zipped({"raw/in_domain_train.tsv": ROWS * 2000}, zipfile.ZIP_DEFLATED)
    start, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    directory = raw[start:end] * 100
    return (
        raw[:start]
        + directory
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 100, 100, len(directory), start, 0)
    )


def read_zip(folder: Path) -> object:
    """Read the archive as a corpus and as a download of CoLA."""
    with contextlib.suppress(ValueError):  # raised if it is not CoLA
        verified_files((folder / "given.zip").read_bytes())
    return load_corpus(folder / "given.zip")


PAIR = {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep.", "field": "syntax", "n": 1}


def pair_cases() -> Cases:
    lines = altered(PAIR, PairRecord).map(json_of) | st.just(json_of(PAIR)) | DEEP | st.binary(max_size=20)
    raw = st.lists(lines, max_size=5).map(b"\n".join) | mutated(json_of(PAIR) + b"\n" + json_of(PAIR))
    packed = [
        st.fixed_dictionaries({"a.jsonl": raw}),
        st.fixed_dictionaries({"a.jsonl.gz": torn(raw.map(gzip.compress))}),
        st.fixed_dictionaries({"a.jsonl.xz": torn(raw.map(lzma.compress))}),
    ]
    return st.one_of(packed)


def read_pair_files(folder: Path) -> object:
    return group_pairs(read_pairs(sorted(folder.iterdir())))


ARRAYS = {"ids": np.arange(5, dtype=np.int32), "offsets": np.array([0, 2, 5]), "num_truncated": np.array(0)}
SENTENCES = ("the cat", "the dogs sleep")


def npz_of(arrays: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def cache_cases() -> Cases:
    good = npz_of(ARRAYS)
    header = st.builds(
        _npy, st.lists(NUMBERS, max_size=3), st.sampled_from(["<i4", "<f8", "|O", "<U9", "|V0", "i4,O", "?"])
    )
    lying = header.map(lambda npy: zipped({"ids.npy": npy, "offsets.npy": npy, "num_truncated.npy": npy}))
    shapes = st.dictionaries(
        st.sampled_from([*ARRAYS, "other"]),
        st.lists(st.integers(-5, 2**40), max_size=4).map(np.array) | st.just(np.array(2.5)),
        max_size=4,
    )
    inner = lying | shapes.map(npz_of) | repacked(good) | mutated(good)
    raw = inner.map(lambda npz: hashlib.sha256(npz).digest() + npz) | mutated(
        hashlib.sha256(good).digest() + good
    )
    return st.fixed_dictionaries({"entry": raw})


def _npy(shape: list[Any], kind: str) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {tuple(shape)!r}, }}".encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def read_cache(folder: Path) -> object:
    """Overwrite a cache entry; the result must be valid or recomputed."""
    cache = ArrayCache(folder / "cache")
    fresh = encode_cached(tokenizer(), SENTENCES, None, cache)
    (entry,) = (path for path in cache.folder.rglob("*.arrays"))
    entry.write_bytes((folder / "entry").read_bytes())
    tokens = encode_cached(tokenizer(), SENTENCES, None, cache)
    assert len(tokens) == len(fresh)
    return [tokens.sentence(i) for i in range(len(tokens))]


def checkpoint_cases() -> Cases:
    good = folder_of("checkpoints")
    newest = "step-00000004"
    states = (altered(a_state(4)) | tensor_states()).map(saved) | repacked(good[f"{newest}/{STATE}"])
    fitting = st.builds(_with_manifest, st.just(newest), states, st.just({}))
    manifest = json.loads(good[f"{newest}/{MANIFEST}"])
    lying = altered({key: value for key, value in manifest.items() if key != "sha256"}, checkpoint.Manifest)
    claims = st.builds(_with_manifest, st.just(newest), st.just(good[f"{newest}/{STATE}"]), lying)
    torn = st.fixed_dictionaries(
        {
            f"{newest}/{STATE}": mutated(good[f"{newest}/{STATE}"]),
            f"{newest}/{MANIFEST}": documents(manifest, checkpoint.Manifest),
        }
    )
    before = st.sampled_from([{}, {name: raw for name, raw in good.items() if newest not in name}])
    return st.builds(lambda new, old: {**old, **new}, fitting | claims | torn, before)


def tensor_states() -> st.SearchStrategy[Any]:
    return tensors().map(lambda tensor: {**a_state(4), "tensors": {"weight": tensor}})


def _with_manifest(step: str, state: bytes, claims: Any) -> Files:
    """Return a checkpoint with a valid manifest, or with `claims` as manifest (its own checksum is valid)."""
    facts = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    manifest = claims or {"format": checkpoint.FORMAT, "step": 4, "files": {STATE: facts}}
    text = checkpoint._manifest_text(manifest) if isinstance(manifest, dict) else json.dumps(manifest)
    return {f"{step}/{STATE}": state, f"{step}/{MANIFEST}": text.encode()}


def read_checkpoints(folder: Path) -> object:
    return Checkpoints(folder).load(lambda damage: None)


def classifier_cases() -> Cases:
    def one(good: bytes) -> st.SearchStrategy[bytes]:
        content = torch.load(io.BytesIO(good), weights_only=True)
        names = st.sampled_from([*content["tensors"], "stranger"])

        def with_tensor(name: str, tensor: torch.Tensor) -> Any:
            return {**content, "tensors": {**content["tensors"], name: tensor}}

        foreign = st.builds(with_tensor, names, tensors())
        origins = altered(content["origin"], Origin).map(lambda origin: {**content, "origin": origin})
        changed = altered(content, ModelMetadata) | foreign | origins
        return mutated(good) | repacked(good) | changed.map(saved)

    good = folder_of("classifiers")
    student = good["rnn/student.safetensors"]
    lying = st.builds(
        with_metadata,
        st.just(student),
        altered(metadata_of(student), ModelMetadata) | DEEP.map(bytes.decode),
    )
    return st.one_of(
        *(st.fixed_dictionaries({"ckpt.pt": one(good[f"{kind}/ckpt.pt"])}) for kind in ("rnn", "gpt")),
        st.fixed_dictionaries({"student.safetensors": safetensors_cases(student) | lying}),
    )


def metadata_of(raw: bytes) -> Any:
    """Return the metadata in the header of a student file."""
    return json.loads(json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"][METADATA_KEY])


def with_metadata(raw: bytes, metadata: Any) -> bytes:
    """Return a student file with other metadata; a string is taken as JSON."""
    length = struct.unpack("<Q", raw[:8])[0]
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    header = json.loads(raw[8 : 8 + length])
    encoded = json_of({**header, "__metadata__": {METADATA_KEY: text}})
    return struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :]


def read_ckpt(folder: Path) -> object:
    try:
        StudentPredictor(folder)(["the cat"])
    except ColakitError as error:
        _raise_exceeded_limit(error)
    read_origin(folder)
    return load_classifier(folder).encode(["the cat"])


def safetensors_cases(good: bytes) -> st.SearchStrategy[bytes]:
    """Return safetensors files with changed bytes, header or tensors."""
    length = struct.unpack("<Q", good[:8])[0]
    header, rest = json.loads(good[8 : 8 + length]), good[8 + length :]

    def with_header(raw: bytes, claimed: int | None) -> bytes:
        return struct.pack("<Q", len(raw) if claimed is None else claimed) + raw + rest

    lengths = st.none() | st.sampled_from([0, 1, 2**26, 2**32, 2**63, 2**64 - 1])
    lying = st.builds(
        with_header, (altered(header, SafetensorsHeader) | st.just(header)).map(json_of), lengths
    )
    dtypes = st.sampled_from(
        ["F4", "F8_E8M0", "F8_E4M3", "F6_E2M3", "C64", "BOOL", "I8", "U64", "F64", "BF16"]
    )
    tensor_names = [name for name in header if name != "__metadata__"]
    retyped = st.builds(
        lambda name, dtype: with_header(json_of({**header, name: {**header[name], "dtype": dtype}}), None),
        st.sampled_from(tensor_names),
        dtypes,
    )
    names = st.sampled_from([*tensor_names, "stranger", ""])
    dense = tensors().filter(lambda tensor: tensor.layout == torch.strided and tensor.numel() < 1000)
    other = st.dictionaries(names, dense.map(torch.clone), max_size=4).map(safetensors_of)
    return lying | retyped | other | mutated(good)


def base_cases() -> Cases:
    good = folder_of("base")
    weights, config = good["model.safetensors"], json.loads(good["config.json"])
    configs = documents(config, ConfigFile) | documents(config, AnyConfigFile) | st.just(good["config.json"])
    index = documents({"weight_map": {"transformer.wte.weight": "part.safetensors"}}, ShardIndex)
    plain = {name: torch.zeros(2, 2) for name in ("transformer.wte.weight", "wpe.weight")}
    bins = altered(plain).map(saved) | repacked(saved(plain)) | mutated(saved(plain)) | tensors().map(saved)
    return st.one_of(
        st.fixed_dictionaries({"config.json": configs, "model.safetensors": st.just(weights)}),
        st.fixed_dictionaries(
            {"config.json": st.just(good["config.json"]), "model.safetensors": safetensors_cases(weights)}
        ),
        st.fixed_dictionaries({"config.json": configs, "pytorch_model.bin": bins}),
        st.fixed_dictionaries(
            {
                "config.json": st.just(good["config.json"]),
                "model.safetensors.index.json": index,
                "part.safetensors": safetensors_cases(weights),
            }
        ),
    )


PATTERNS = (
    *("(.+)+$x", ".*.*.*.*.*.*.*.*x", "(c|c)*attn", "(.|.)*(.|.)*x", "(", "[", "c_attn", "(?P<x>a)(?P=y)"),
    *("(" * 3000, "a{9999999}", "((a{99}){99}){99}", r"h\.\d{1,2}\.attn"),
)


def adapter_cases() -> Cases:
    good = folder_of("adapter")
    config = json.loads(good["adapter_config.json"])
    naming = st.builds(
        lambda key, pattern: {**config, key: pattern},
        st.sampled_from(["target_modules", "exclude_modules", "base_model_name_or_path"]),
        st.sampled_from(PATTERNS),
    ) | st.sampled_from(PATTERNS).map(lambda pattern: {**config, "alpha_pattern": {pattern: 3}})
    configs = documents(config, AdapterConfig) | (naming | st.just(config)).map(json_of)
    facts = json.loads(good["colakit.json"])
    origins = altered(facts["origin"], Origin).map(lambda origin: json_of({**facts, "origin": origin}))
    companion = documents(facts, Companion) | origins
    weights = good["adapter_model.safetensors"]
    kept = {name: st.just(raw) for name, raw in good.items()}
    return st.one_of(
        st.fixed_dictionaries({**kept, "adapter_config.json": configs}),
        st.fixed_dictionaries({**kept, "adapter_model.safetensors": safetensors_cases(weights)}),
        st.fixed_dictionaries({**kept, "colakit.json": companion}),
    )


@functools.cache
def base_with_tokenizer() -> Path:
    """Write a valid base for the adapters; return its folder."""
    from colakit.data.tokenizer import save_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="hostile-base-"))
    for name, raw in folder_of("base").items():
        (folder / name).write_bytes(raw)
    save_tokenizer(tokenizer(), folder, max_tokens=8)
    return folder


def read_adapter_folder(folder: Path) -> object:
    """Load the adapter into a classifier and into a language model."""
    read_origin(folder)
    apply_adapter(GPT(gpt_config()), read_adapter(folder), where="adapter")
    return load_classifier(folder, base=str(base_with_tokenizer()))


DECISIONS = {"accuracy": 0.75, "mcc": 0.5}
SCORES = {"loss": 0.5, **DECISIONS}
SPLIT = {**SCORES, "num_examples": 4, "majority_rate": 0.5}
RUN_FILES: dict[str, Any] = {
    "summary.json": {
        **{"command": "finetune", "seed": 0, "experiment": "abc", "model": "finetune", "labels": ["a", "b"]},
        **{"best": {"epoch": 1.0}, "splits": {"val": SPLIT, "dev": SPLIT}, "threshold": 0.5, "seconds": 1.0},
        **{"train_loss": "cross-entropy", "steps": 1, "max_steps": 1, "examples": 4},
    },
    "metrics.jsonl": {
        **{"event": "evaluation", "step": 1, "epoch": 1.0, "train": {"loss": 0.5}},
        **{"val": {**SCORES, "argmax": DECISIONS}, "dev": {"dev": SCORES}},
    },
    "predictions.json": {
        "label_names": ["a", "b"],
        "splits": {"dev": {"labels": [0, 1, 1, 0], "predictions": [0, 1, 0, 0]}},
    },
    "runs.json": {"command": "finetune", "folds": 2},
    "environment.json": {
        **{"colakit": "0.1.0", "python": "3.11", "platform": "Linux", "packages": {"torch": "2", "x": None}},
        **{
            "device": "cpu",
            "reason": "no GPU",
            "threads": 1,
            "git_commit": None,
            "command_line": ["colakit"],
        },
        "origins": {"lora.rank": "--rank"},
    },
}
TRIAL = {"index": 0, "state": "complete", "value": 0.5, "params": {"lora.rank": 8}, "seconds": 1.0}
SWEEP = {
    **{"objective": "val MCC", "note": "the best of 2", "space": {"lora.rank": "1 to 8, log"}},
    **{
        "importance": {"lora.rank": 1.0},
        "trials": [TRIAL, {**TRIAL, "index": 1, "params": {"lora.rank": 2}}],
    },
    "winner": TRIAL,
}


RUN_MODELS: dict[str, type[BaseModel]] = {
    "summary.json": ClassifierSummary,
    "metrics.jsonl": EvaluationRecord,
    "predictions.json": Predictions,
    "runs.json": RunsRecord,
    "environment.json": Environment,
}
STEP = {"event": "step", "step": 1, "loss": 0.5}


def run_cases() -> Cases:
    good = {name: json_of(value) + b"\n" for name, value in RUN_FILES.items()}
    files = {name: documents(RUN_FILES[name], model) for name, model in RUN_MODELS.items()}
    evaluation = st.just(json_of(RUN_FILES["metrics.jsonl"]))
    lines = st.lists(evaluation | documents(STEP, StepRecord) | files["metrics.jsonl"], max_size=4)
    files["metrics.jsonl"] = lines.map(b"\n".join).map(lambda raw: raw + b"\n")
    return st.one_of(
        *(
            st.fixed_dictionaries({**{other: st.just(raw) for other, raw in good.items()}, name: changed})
            for name, changed in files.items()
        )
    )


def read_run(folder: Path) -> object:
    """Read all files of a run folder that `plot` and `evaluate` read."""
    run = RunFolder(folder)
    read = (lambda: open_run_set(folder), lambda: run.read_summary(ClassifierSummary), run.read_metrics)
    return [each() for each in (*read, run.read_predictions, run.read_environment)]


def sweep_cases() -> Cases:
    return torn(documents(SWEEP, SweepSummary)).map(lambda raw: {"summary.json": raw})


SHARE = {"summed": {"value": 0.5, "low": 0.4, "high": 0.6}, "per_token": 0.5}
PAIR_RESULT = {"model": "base", "ties": 0, "truncated": 0, **SHARE, "groups": {"schema": {"a": SHARE}}}
PAIR_RESULTS = {"pairs": 10, "group_sizes": {"schema": {"a": 10}}, "models": [PAIR_RESULT, PAIR_RESULT]}


def pair_result_cases() -> Cases:
    cases = st.just(json_of(PAIR_RESULTS)) | torn(documents(PAIR_RESULTS, PairsRecord))
    return cases.map(lambda raw: {"pairs.json": raw})


def tokenizer_cases() -> Cases:
    file = json.loads(tokenizer().backend.to_str())
    special = {"eos_token": "<|endoftext|>", "add_prefix_space": False}
    classes = st.sampled_from(
        ["GPT2Tokenizer", "PreTrainedTokenizerFast", "BertTokenizer", "T5Tokenizer", "LlamaTokenizer", "X"]
    )
    configs = st.builds(
        lambda kind, facts: json_of({"tokenizer_class": kind, **facts} if isinstance(facts, dict) else facts),
        classes,
        altered(special, SpecialTokens) | st.just(special),
    )
    vocab, merges = file["model"]["vocab"], "\n".join(map(" ".join, file["model"]["merges"])).encode()
    rules = st.sampled_from(
        [
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"Regex": r"\s+|\p{L}+"}, "behavior": "Isolated", "invert": False},
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60},
            {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits"}]},
            {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Precompiled"}]},
            {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
        ]
    )
    ruled = st.builds(
        lambda part, rule: {**file, part: rule},
        st.sampled_from(["normalizer", "pre_tokenizer", "decoder"]),
        rules,
    )
    files = torn((altered(file, TokenizerFile) | ruled | ruled.flatmap(altered)).map(json_of))
    return st.one_of(
        st.fixed_dictionaries({"tokenizer.json": files, "tokenizer_config.json": torn(configs)}),
        st.fixed_dictionaries({"tokenizer.json": files}),
        st.fixed_dictionaries(
            {
                "vocab.json": torn(altered(vocab).map(json_of)) | st.just(json_of(vocab)),
                "merges.txt": mutated(merges),
            }
        ),
    )


def read_tokenizer(folder: Path) -> object:
    loaded = SentenceTokenizer.from_base(folder)
    return loaded.encode(["the cat", ""]).ids.max(initial=0) < loaded.vocab_size


# -- commands on the run folder of another


CORPUS = "".join(f"a{i % 5}\t{i % 2}\t\tThe cat number {i} sleeps.\n" for i in range(40)).encode()


def run_settings() -> Settings:
    given = ["data.path=corpus", "base=base", "distill.teacher=[good]", "student_training.max_steps=1"]
    return resolve(assignments=given, environment={}).settings


@functools.cache
def good_run() -> Files:
    """Return the files of a finished run of a student, with a checkpoint."""
    files = {name.removeprefix("rnn/"): raw for name, raw in folder_of("classifiers").items()}
    states = {f"checkpoints/{name}": raw for name, raw in folder_of("checkpoints").items()}
    adapter = {f"adapter/{name}": raw for name, raw in folder_of("adapter").items()}
    settings = {"settings.yaml": to_yaml(run_settings()).encode()}
    documents = {name: json_of(value) + b"\n" for name, value in RUN_FILES.items() if name != "runs.json"}
    files = {name: raw for name, raw in files.items() if name in ("ckpt.pt", "student.safetensors")}
    return {**files, **adapter, **states, **settings, **documents}


MODEL, STUDENT = ("ckpt.pt", "settings.yaml"), ("ckpt.pt", "student.safetensors", "settings.yaml")
FIGURES = ("summary.json", "metrics.jsonl", "predictions.json", "settings.yaml")
ADAPTER = ("adapter/adapter_config.json", "adapter/colakit.json", "adapter/adapter_model.safetensors")
STATES = tuple(f"checkpoints/step-0000000{step}/{name}" for step in (2, 4) for name in (STATE, MANIFEST))
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (  # and the files that it reads
    ("plot case --out figures --set plot.dpi=30", FIGURES),
    ("plot case good --out figures --set plot.dpi=30", FIGURES),
    ("report case good --out report.html", (*FIGURES, "environment.json")),
    ("predict sentences.txt --model case", STUDENT),
    ("predict sentences.txt --model case/ckpt.pt --json", STUDENT),
    ("predict sentences.txt --model case/ckpt.pt --device cpu", MODEL),
    ("evaluate case --data corpus", MODEL),
    ("evaluate case good/ckpt.pt", MODEL),
    ("distill --teacher case --data corpus --transfer-size 0 --dry-run", MODEL),
    ("distill --teacher case --transfer-size 0 --dry-run", MODEL),
    ("train-scratch --like case --data corpus --base base --dry-run", ("summary.json", "settings.yaml")),
    ("train-scratch --like case --dry-run", ("summary.json", "settings.yaml")),
    ("finetune --resume --out case --data corpus --base base", STATES),
    ("distill --resume --out case --teacher good --transfer-size 0", STATES),
    ("config show --config case/settings.yaml", ("settings.yaml",)),
    ("generate --prompt the --adapter case/adapter --base base", ADAPTER),
    ("predict sentences.txt --model case/adapter --base base", ADAPTER),
    ("evaluate case/adapter case --data corpus --base base", (*ADAPTER, *MODEL)),
)


def command_cases() -> Cases:
    """Return run folders with one or two changed or missing files, and the number of a command."""
    good = good_run()
    changes: dict[str, st.SearchStrategy[bytes | None]] = {name: mutated(raw) for name, raw in good.items()}
    changes |= {name: documents(RUN_FILES[name], model) for name, model in RUN_MODELS.items()}
    changes["settings.yaml"] = documents(yaml.safe_load(good["settings.yaml"]), Settings)
    for name, model in zip(ADAPTER, (AdapterConfig, Companion), strict=False):
        changes[name] = documents(json.loads(good[name]), model)
    content = torch.load(io.BytesIO(good["ckpt.pt"]), weights_only=True)
    origins = altered(content["origin"], Origin).map(lambda origin: {**content, "origin": origin})
    changes["ckpt.pt"] = (altered(content, ModelMetadata) | origins).map(saved) | mutated(good["ckpt.pt"])

    def of_command(number: int) -> Cases:
        one = st.one_of(
            *(st.fixed_dictionaries({name: changes[name]}) for name in COMMANDS[number][1]),
            st.sampled_from(COMMANDS[number][1]).map(lambda name: {name: None}),
        )

        def merged(*parts: dict[str, bytes | None]) -> Files:
            files = {f"case/{name}": raw for part in (good, *parts) for name, raw in part.items()}
            number_file = {"command": str(number).encode()}
            return number_file | {name: raw for name, raw in files.items() if raw is not None}

        return st.builds(merged, one, one | st.just({}))

    return st.integers(0, len(COMMANDS) - 1).flatmap(of_command)


def run_command(folder: Path) -> object:
    """Run a command on the run folder; it must end with 0, or with 2 and the name of a fault."""
    arguments = COMMANDS[int((folder / "command").read_bytes())][0].split()
    for name, raw in good_run().items():
        (folder / "good" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "good" / name).write_bytes(raw)
    (folder / "corpus").mkdir()
    for name in COLA_FILES.values():
        (folder / "corpus" / name).write_bytes(CORPUS)
    (folder / "sentences.txt").write_text("the cat\n", encoding="utf-8")
    shutil.copytree(base_with_tokenizer(), folder / "base")
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    finally:
        os.chdir(before)
    text = err.getvalue()
    assert "Traceback" not in text, text
    assert not any(mark in text + out.getvalue() for mark in "\x1b\x07\u202e"), text
    if code == 2:
        raise ColakitError(text[text.index("error: ") :])
    assert code == 0, (code, arguments, text)
    return code


SCHEMAS = (
    *(*RUN_MODELS.values(), MetricsFile, Summary, ModelMetadata, Origin, Companion, ConfigFile, ShardIndex),
    *(AdapterConfig, SafetensorsHeader, TokenizerFile, SpecialTokens, TokenizerState, VocabularyFile),
    *(checkpoint.Manifest, AnyDocument, AnyConfigFile, BaselineMetadata, ResultSummary, TrackedRuns),
    *(GgufCounts, GgufTensor, GgufModel, GgufTokenizer, SweepSummary, PairsRecord),
)
"""All files that readers parse; parts of them are found in their schemas."""


@functools.cache
def readers() -> dict[str, Reader]:
    """Return all readers by the kind of file."""
    return {
        "TSV, CSV": Reader(table_cases(), read_table),
        "JSON, Parquet": Reader(record_cases(), read_table),
        "annotations": Reader(annotation_cases(), read_marks),
        "YAML": Reader(yaml_cases(), lambda folder: resolve(config=folder / "settings.yaml", environment={})),
        "zip": Reader(zip_cases(), read_zip),
        "pairs": Reader(pair_cases(), read_pair_files),
        "cached arrays": Reader(cache_cases(), read_cache),
        "checkpoints": Reader(checkpoint_cases(), read_checkpoints),
        "ckpt.pt": Reader(classifier_cases(), read_ckpt),
        "run folder": Reader(run_cases(), read_run),
        "sweep": Reader(sweep_cases(), lambda folder: [*describe_sweep(folder)], share=0.3),
        "pair results": Reader(pair_result_cases(), lambda folder: [*describe_pairs(folder)]),
        "tokenizer": Reader(tokenizer_cases(), read_tokenizer),
        "base": Reader(base_cases(), load_gpt),
        "GGUF": Reader(gguf_cases(), read_gguf),
        "adapter": Reader(adapter_cases(), read_adapter_folder),
        **{name: Reader(cases(), read) for name, (cases, read) in DATA_READERS.items()},
        "commands": Reader(command_cases(), run_command, share=0.2),
    }


def fuzz(reader: Reader, cases: int, count: Counter[str]) -> None:
    """Run a reader on its share of `cases` cases, the same ones every time.

    Raises:
        Exception: any other than `ColakitError`, from the smallest failing case.
    """

    @hypothesis.settings(
        max_examples=round(cases * reader.share),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=reader.cases)
    def law(case: Files) -> None:
        count["cases"] += 1
        count[outcome(reader, case)] += 1

    law()


# -- command line


def run() -> None:
    """Fuzz every reader and print the table."""
    parser = argparse.ArgumentParser(description="Fuzz every reader of untrusted files.")
    parser.add_argument("--cases", type=int, default=20_000, help="number of cases for each reader")
    parser.add_argument("--only", nargs="*", default=[], help="names of the readers; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = {name: reader for name, reader in readers().items() if name in options.only or not options.only}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        os.chdir(folder)
        print("| files | cases | results | refusals | seconds |\n| --- | ---: | ---: | ---: | ---: |")
        for name, reader in chosen.items():
            count, start = Counter[str](), time.monotonic()
            fuzz(reader, options.cases, count)
            cells = [f"{count[key]:,}" for key in ("cases", "result", "refused")]
            print(f"| {' | '.join([name, *cells])} | {time.monotonic() - start:.0f} |", flush=True)
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\nno other outcome; {time.monotonic() - began:.0f} s, peak memory {peak} MiB")


if __name__ == "__main__":
    run()
