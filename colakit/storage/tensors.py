"""Tensor files: torch archives of tensors and plain data, and safetensors."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from colakit.errors import ColakitError, first_line
from colakit.utils.files import replacing, require_unpacked_to_fit


def write_tensors(path: Path, value: Any) -> None:
    """Write tensors and plain data to `path` atomically, for `torch.load(weights_only=True)`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)  # given a path, torch would write its name into the file
        except RuntimeError as error:  # torch closes its archive after an error and hides the cause
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise
        file.flush()


def read_tensors(path: Path) -> Any:
    """Return the tensors and plain data of a `torch.save` file; no code in the file is executed.

    Raises:
        ValueError: if the content needs more memory than the file has bytes.
        Exception: any error of the unpickler on a damaged file.
    """
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):  # torch stores without compression but decompresses without a limit
        with zipfile.ZipFile(path) as archive:
            require_unpacked_to_fit(archive.infolist(), path)
    else:  # torch's legacy format: a file's declared length would be allocated unchecked
        source = io.BytesIO(path.read_bytes())
    content = torch.load(source, map_location="cpu", weights_only=True)
    for tensor in _tensors(content):
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than its data")
    return content


def read_weights_file(path: Path, *, hint: str) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors or torch file, in fp32; no code in the file is executed.

    Args:
        hint: repair advice for a broken file.

    Raises:
        ColakitError: if the file is missing or broken, or contains anything but named real tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) and not tensor.is_complex()
            for name, tensor in content.items()
        ):
            raise ValueError("it must contain only named tensors of real numbers")
        return {name: tensor.float() for name, tensor in content.items()}
    except Exception as error:  # both libraries raise many error types on a damaged file
        raise ColakitError(f"{path}: cannot be read ({first_line(error)})", hint=hint) from error


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested plain data, which may contain itself."""
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
