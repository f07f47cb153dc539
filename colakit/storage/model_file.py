"""The files of a trained classifier: `ckpt.pt`, and for a student also `student.safetensors`.

Both hold the model's tensors and its metadata: plain data such as configuration, tokenizer, label names,
threshold and origin. `ckpt.pt` is read by torch with `weights_only=True`. `student.safetensors` lies beside
it and is read without torch, whose import takes longer than labelling thousands of sentences. It records the
SHA-256 of the `ckpt.pt` that was written with it, so a `ckpt.pt` that was replaced later is noticed.

Only functions that read or write `ckpt.pt` import torch.
"""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from colakit import __version__
from colakit.errors import ColakitError, first_line
from colakit.utils.files import MAX_JSON_BYTES, read_json, replacing, sha256_of, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CHECKPOINT_NAME = "ckpt.pt"
STUDENT_NAME = "student.safetensors"
COMPANION_NAME = "colakit.json"  # in an adapter folder: metadata that PEFT's two files have no field for
METADATA_KEY = "colakit"  # one key only: safetensors writes several in random order


def student_name(origin: Mapping[str, Any], cell: str) -> str:
    """Return the name of a student in tables and messages."""
    return f"{origin.get('command', 'adapter')} ({cell})"


def check_metadata(metadata: Mapping[str, Any], num_labels: int) -> None:
    """Raise `ValueError` unless label names, max_tokens, threshold and origin are valid."""
    names, max_tokens, threshold = metadata["label_names"], metadata["max_tokens"], metadata["threshold"]
    if not isinstance(names, list) or [type(name) for name in names] != [str] * num_labels:
        raise ValueError(f"label_names must be {num_labels} strings")
    if max_tokens is not None and not (type(max_tokens) is int and max_tokens >= 1):
        raise ValueError("max_tokens must be an integer of at least 1, or null")
    if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise ValueError("threshold must be a probability, or null")
    if threshold is not None and num_labels != 2:
        raise ValueError(f"threshold needs 2 labels (got {num_labels})")
    origin = metadata["origin"]
    if not isinstance(origin, dict) or not isinstance(origin.get("command", ""), str):
        raise ValueError("origin must be an object whose command is a string")


def write_model_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `path` (a `ckpt.pt`) and, for a student, `student.safetensors` beside it, each atomically.

    Equal metadata and tensors give equal bytes.

    Args:
        metadata: `kind` (`rnn` or `gpt`), `config`, `lora`, `tokenizer`, `label_names`, `max_tokens`,
            `threshold` and `origin`, JSON-serialisable.
    """
    from colakit.storage.tensors import write_tensors

    # The round trip removes shared objects: pickle writes a string once or twice depending on identity.
    plain = json.loads(json.dumps({"format": FORMAT, "colakit": __version__, **metadata}))
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, {**plain, "tensors": on_cpu})
    if plain["kind"] == "rnn":
        plain["checkpoint_sha256"] = sha256_of(path)
        arrays = {name: tensor.numpy() for name, tensor in on_cpu.items()}
        with replacing(path.with_name(STUDENT_NAME)) as temporary:
            temporary.write_bytes(save(arrays, {METADATA_KEY: json.dumps(plain)}))


def read_model_file(path: Path) -> dict[str, Any]:
    """Return the metadata of a `ckpt.pt` or `student.safetensors`, with torch tensors under `tensors`.

    Raises:
        ColakitError: if it cannot be read, was not written by colakit, or has another format number.
    """
    import torch

    from colakit.storage.tensors import read_tensors

    try:
        if path.suffix == ".safetensors":
            content, arrays = read_student_file(path)
            content["tensors"] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        else:
            content = read_tensors(path)
        if not isinstance(content, dict) or not {"format", "kind"} <= content.keys():
            raise ValueError("format or kind is missing")
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise ColakitError(
            f"{path}: not a colakit model file ({first_line(error)})",
            hint=f"Give the {CHECKPOINT_NAME} of a run folder; if it was copied, check that it is complete.",
        ) from error
    stored = content["format"]
    if type(stored) is not int or stored != FORMAT:
        raise ColakitError(
            f"{path}: format {reprlib.repr(stored)[:40]} is not supported; only format {FORMAT} is",
            hint="Upgrade colakit, or train the model again.",
        )
    return content


def read_student_file(where: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
    """Return (metadata, tensors) of a student, without importing torch.

    Args:
        where: a `student.safetensors`, or a run folder or its `ckpt.pt`, beside which it lies.

    Raises:
        ValueError: if it is damaged, or does not belong to the `ckpt.pt`.
        OSError: if it cannot be read.
    """
    path, checkpoint = where, None
    if path.suffix != ".safetensors":
        checkpoint = where / CHECKPOINT_NAME if where.is_dir() else where
        path = checkpoint.with_name(STUDENT_NAME)
    with path.open("rb") as raw:
        header_bytes = int.from_bytes(raw.read(8), "little")
    if header_bytes > MAX_JSON_BYTES:
        raise ValueError(f"its header has {header_bytes:,} bytes; {MAX_JSON_BYTES:,} are allowed")
    try:
        with safe_open(path, framework="np") as file:  # checks that sizes in the header fit the file
            metadata = json.loads(file.metadata()[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = metadata["checkpoint_sha256"]
    except Exception as error:  # safetensors and a foreign header can raise anything
        raise ValueError(f"not a student file of colakit ({first_line(error)})") from error
    if checkpoint is not None and checkpoint.exists() and recorded != sha256_of(checkpoint):
        raise ValueError(f"it was not written with {checkpoint.name}")
    return metadata, tensors


def describe_model(path: Path) -> str:
    """Return in words what a path without a student holds."""
    folder = path if path.is_dir() else path.parent
    if (folder / "summary.json").is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return f"holds {read_json(folder / 'summary.json')['model']}"
    contents = {
        "adapter_config.json": "an adapter",
        CHECKPOINT_NAME: f"a {CHECKPOINT_NAME}",
        "config.json": "a base model",
        "folds.json": "cross-validation folds",
        "checkpoints": "an unfinished run",
    }
    held = [words for name, words in contents.items() if (folder / name).exists()]
    return f"holds {held[0]}" if held else "holds no model"


def write_companion(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write `colakit.json` into an adapter folder."""
    write_json(folder / COMPANION_NAME, metadata)


def read_companion(folder: Path) -> dict[str, Any]:
    """Return the content of `colakit.json` in an adapter folder; it is empty if PEFT wrote the folder.

    Raises:
        ColakitError: if the file is damaged.
    """
    path = folder / COMPANION_NAME
    if not path.is_file():
        return {}
    try:
        companion = read_json(path)
        if not isinstance(companion, dict) or not isinstance(companion.get("origin", {}), dict):
            raise ValueError("expected an object")
    except (OSError, ValueError) as error:
        raise ColakitError(
            f"{path}: cannot be read ({first_line(error)})",
            hint="Save the adapter again, or delete this file.",
        ) from error
    return companion
