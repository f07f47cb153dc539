"""The files of a trained classifier: `ckpt.pt`, for a student also `student.safetensors`; of a baseline
of n-grams `baseline.safetensors` alone.

They hold the model's tensors and its metadata: plain data such as configuration, tokenizer, label names,
threshold and origin. `ckpt.pt` is read by torch with `weights_only=True`. `student.safetensors` lies beside
it and is read without torch, whose import takes longer than labelling thousands of sentences. It records the
SHA-256 of the `ckpt.pt` that was written with it, so a `ckpt.pt` that was replaced later is noticed.

Only functions that read or write `ckpt.pt` import torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, FiniteFloat, field_validator, model_validator
from safetensors import safe_open
from safetensors.numpy import save
from typing_extensions import Self

from colakit import __version__
from colakit.data.tokenizer import SentenceTokenizer, TokenizerState
from colakit.models.ngrams import MAX_CHARACTERS, MAX_WORDS
from colakit.storage.run_schemas import Count, Fold, Fraction, LabelNames, Seed, Summary
from colakit.storage.safetensors_header import read_header
from colakit.utils.documents import (
    Document,
    DocumentError,
    check_plain,
    library_errors,
    parse_document,
    read_document,
    validate,
)
from colakit.utils.files import replacing, sha256_of, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CHECKPOINT_NAME = "ckpt.pt"
STUDENT_NAME = "student.safetensors"
BASELINE_NAME = "baseline.safetensors"
COMPANION_NAME = "colakit.json"  # in an adapter folder: metadata that PEFT's two files have no field for
METADATA_KEY = "colakit"  # one key only: safetensors writes several in random order
MAX_MODULES = 2**12
BROKEN = f"Give the {CHECKPOINT_NAME} of a run folder; if it was copied, check that it is complete."
BROKEN_ARRAYS = (
    f"Copy or train the model again. Without {STUDENT_NAME}, the {CHECKPOINT_NAME} of a run is read."
)


Scalar = bool | int | float | str | None
SectionRecord = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]


class FinetuneRecord(Document):
    """The recorded settings of fine-tuning that are used again."""

    from_scratch: bool = False
    leave_out: Fold | None = None


class DataRecord(Document):
    """The recorded settings of data that are used without a validation of all."""

    text_column: str | None = None


class SettingsRecord(Document, extra="allow"):
    """The recorded settings: sections and single settings."""

    __pydantic_extra__: dict[str, Scalar | list[Scalar] | SectionRecord]
    data: DataRecord | None = None
    finetune: FinetuneRecord | None = None
    transfer: SectionRecord | None = None
    base: str | None = None


class Origin(Document):
    """How a model was made."""

    command: Annotated[str, Field(max_length=100)] = "adapter"
    seed: Seed | None = None
    base: str | None = None
    base_fingerprint: str | None = None
    settings: SettingsRecord | None = None
    data: dict[str, str] | None = None
    transfer: dict[str, Any] | None = None
    teachers: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    steps: Count | None = None
    max_steps: Count | None = None
    examples: Count | None = None
    student_fingerprint: str | None = None
    start_fingerprint: str | None = None
    train_fingerprint: str | None = None


def check_origin(origin: dict[str, Any]) -> dict[str, Any]:
    """Return an origin, or raise `ValueError` if it is not valid."""
    validate(origin, Origin)
    return origin


OriginDict = Annotated[dict[str, Any], AfterValidator(check_origin)]  # kept whole and in its order
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]


class LoRARecord(Document):
    """A `LoRAConfig`."""

    rank: Annotated[int, Field(ge=1, le=2**16)]
    alpha: FiniteFloat
    dropout: Fraction
    target_modules: Annotated[tuple[str, ...], Field(max_length=MAX_MODULES)]
    rslora: bool
    dora: bool
    init: Literal["kaiming", "pissa"]
    rank_pattern: Annotated[dict[str, Annotated[int, Field(ge=1, le=2**16)]], Field(max_length=MAX_MODULES)]
    alpha_pattern: Annotated[dict[str, FiniteFloat], Field(max_length=MAX_MODULES)]
    layers_to_transform: Annotated[tuple[int, ...], Field(max_length=MAX_MODULES)] | None


class DecisionMetadata(Document):
    """What every model file records beside the model: the decision rule and the origin."""

    format: int
    label_names: LabelNames
    threshold: Fraction | None
    temperature: Temperature = 1.0
    origin: OriginDict

    @field_validator("format")
    @classmethod
    def _is_supported(cls, number: int) -> int:
        if number != FORMAT:
            raise ValueError(f"{number} is not supported, only {FORMAT}; upgrade colakit, or train it again")
        return number

    @model_validator(mode="after")
    def _decision_fits(self) -> Self:
        check_threshold(self.threshold, len(self.label_names))
        return self


class ModelMetadata(DecisionMetadata):
    """All of a model file but its tensors."""

    kind: Literal["rnn", "gpt"]
    config: dict[str, Any]  # checked by the dataclass of the kind
    lora: LoRARecord | None
    tokenizer: TokenizerState
    max_tokens: MaxTokens | None
    checkpoint_sha256: str | None = None  # of a student


class BaselineMetadata(DecisionMetadata):
    """All of a `baseline.safetensors` but its tensors."""

    words: Annotated[int, Field(ge=0, le=MAX_WORDS)]
    characters: Annotated[int, Field(ge=0, le=MAX_CHARACTERS)]


M = TypeVar("M", ModelMetadata, BaselineMetadata)


class FileSpeed(Document):
    """The time of one sentence with a file of an exported folder; the run itself is named `colakit`."""

    file: str
    milliseconds: Annotated[float, Field(gt=0)]


class ParityRecord(Document):
    """The part of an export's parity report that is read again."""

    files: Annotated[list[FileSpeed], Field(max_length=100)] = Field([])


class Companion(Document):
    """The content of `colakit.json` in an adapter folder or an exported one.

    All is missing if PEFT wrote the folder.
    """

    label_names: LabelNames | None = None
    max_tokens: MaxTokens | None = None
    threshold: Fraction | None = None
    temperature: Temperature = 1.0
    origin: OriginDict = Field({})
    prefix: bool = False
    suffix: bool = False
    start_token: str | None = None
    parity: ParityRecord = Field(ParityRecord())

    @property
    def is_empty(self) -> bool:
        """Whether the folder has no `colakit.json`."""
        return not self.model_fields_set


def check_threshold(threshold: float | None, num_labels: int) -> None:
    """Raise `ValueError` if there is a threshold, but not two labels."""
    if threshold is not None and num_labels != 2:
        raise ValueError(f"threshold needs 2 labels (got {num_labels})")


def student_name(origin: Mapping[str, Any], cell: str) -> str:
    """Return the name of a student in tables and messages."""
    return f"{origin.get('command', 'adapter')} ({cell})"


def check_shapes(metadata: ModelMetadata, config: Any, num_labels: int, tokenizer: SentenceTokenizer) -> None:
    """Raise `ValueError` unless labels, tokens and lengths fit the model of a config."""
    positions = getattr(config, "num_positions", None)
    if positions is not None and not (metadata.max_tokens and metadata.max_tokens <= positions):
        raise ValueError(f"max_tokens must be from 1 to {positions} (got {metadata.max_tokens})")
    if len(metadata.label_names) != num_labels:
        raise ValueError(f"label_names must be {num_labels} strings (got {len(metadata.label_names)})")
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,}"
        )


def write_model_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `path` (a `ckpt.pt`) and, for a student, `student.safetensors` beside it, each atomically.

    Equal metadata and tensors give equal bytes.

    Args:
        metadata: `kind` (`rnn` or `gpt`), `config`, `lora`, `tokenizer`, `label_names`, `max_tokens`,
            `threshold`, `temperature` and `origin`, JSON-serialisable.
    """
    from colakit.storage.tensors import write_tensors

    # The round trip removes shared objects: pickle writes a string once or twice depending on identity.
    plain = json.loads(json.dumps(_with_version(metadata)))
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, {**plain, "tensors": on_cpu})
    if plain["kind"] == "rnn":
        plain["checkpoint_sha256"] = sha256_of(path)
        arrays = {name: tensor.numpy() for name, tensor in on_cpu.items()}
        _write_arrays(path.with_name(STUDENT_NAME), plain, arrays)


def write_student_file(
    folder: Path, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]
) -> None:
    """Write `student.safetensors` alone into a folder; arguments as of `write_model_file`."""
    _write_arrays(folder / STUDENT_NAME, json.loads(json.dumps(_with_version(metadata))), arrays)


def write_baseline_file(
    folder: Path, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]
) -> Path:
    """Write `baseline.safetensors` into a folder and return its path; equal content gives equal bytes."""
    path = folder / BASELINE_NAME
    _write_arrays(path, _with_version(metadata), arrays)
    return path


def _with_version(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "colakit": __version__, **metadata}


def _write_arrays(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(save(dict(arrays), {METADATA_KEY: json.dumps(metadata)}))


def read_model_file(path: Path) -> tuple[ModelMetadata, dict[str, Tensor]]:
    """Return the metadata and the tensors of a `ckpt.pt` or `student.safetensors`.

    Raises:
        DocumentError: if it cannot be read, was not written by colakit, or has another format number.
    """
    import torch

    from colakit.storage.tensors import named_tensors, read_tensors

    if path.suffix == ".safetensors":
        metadata, arrays = read_student_file(path)
        return metadata, {name: torch.from_numpy(array) for name, array in arrays.items()}
    content = read_tensors(path, hint=BROKEN)
    with library_errors(path, hint=BROKEN):
        if not isinstance(content, dict) or "tensors" not in content:
            raise ValueError("not a model file of colakit")
        tensors = named_tensors(content.pop("tensors"))
        check_plain(content)
        text = json.dumps(content)
    return parse_document(text, ModelMetadata, str(path), hint=BROKEN), tensors


def student_file(where: str | Path) -> Path | None:
    """Return the `student.safetensors` at a path: itself, in the folder or beside `ckpt.pt`; else None."""
    path = Path(where).expanduser()
    if path.is_dir():
        path /= STUDENT_NAME
    elif path.name == CHECKPOINT_NAME:
        path = path.with_name(STUDENT_NAME)
    return path if path.suffix == ".safetensors" and path.exists() else None


def read_student_file(
    path: Path, *, alone: bool = True
) -> tuple[ModelMetadata, dict[str, NDArray[np.generic]]]:
    """Return (metadata, tensors) of a `student.safetensors`, fp16 as fp32, without importing torch.

    Args:
        alone: False if it stands for the `ckpt.pt` beside it.

    Raises:
        DocumentError: if it is damaged, or does not belong to that `ckpt.pt`.
        MissingError: if there is no such file.
    """
    metadata, tensors = _read_arrays(path, ModelMetadata)
    checkpoint = path.with_name(CHECKPOINT_NAME)
    if not alone and checkpoint.exists() and metadata.checkpoint_sha256 != sha256_of(checkpoint):
        raise DocumentError(f"{path}: was not written with {checkpoint.name}", hint=BROKEN_ARRAYS)
    return metadata, {name: _widened(array) for name, array in tensors.items()}


def _widened(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def read_baseline_file(path: Path) -> tuple[BaselineMetadata, dict[str, NDArray[np.generic]]]:
    """Return (metadata, tensors) of a `baseline.safetensors`.

    Raises:
        DocumentError: if it is damaged.
        MissingError: if there is no such file.
    """
    return _read_arrays(path, BaselineMetadata)


def _read_arrays(path: Path, model: type[M]) -> tuple[M, dict[str, NDArray[np.generic]]]:
    header = read_header(path, hint=BROKEN_ARRAYS)
    text = header.metadata.get(METADATA_KEY, "")
    metadata = parse_document(text, model, f"{path}, {METADATA_KEY}", hint=BROKEN_ARRAYS)
    with library_errors(path, hint=BROKEN_ARRAYS), safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise ValueError(f"the weight {wrong[0]} has values that are infinite or NaN")
    return metadata, arrays


def describe_model(path: Path) -> str:
    """Return in words what a path without a student holds."""
    folder = path if path.is_dir() else path.parent
    if (folder / "summary.json").is_file():
        with contextlib.suppress(DocumentError):
            if (name := read_document(folder / "summary.json", Summary).model) is not None:
                return f"holds {name}"
    contents = {
        "adapter_config.json": "an adapter",
        CHECKPOINT_NAME: f"a {CHECKPOINT_NAME}",
        "config.json": "a base model",
        "runs.json": "several runs",
        "checkpoints": "an unfinished run",
    }
    held = [words for name, words in contents.items() if (folder / name).exists()]
    return f"holds {held[0]}" if held else "holds no model"


def write_companion(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write `colakit.json` into an adapter folder."""
    write_json(folder / COMPANION_NAME, metadata)


def read_companion(folder: Path) -> Companion:
    """Return the content of `colakit.json` in an adapter folder.

    Raises:
        DocumentError: if the file is damaged.
    """
    path = folder / COMPANION_NAME
    if not path.is_file():
        return Companion()
    return read_document(path, Companion, hint="Save the adapter again, or delete this file.")
