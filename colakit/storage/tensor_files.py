"""Files of tensors and plain data, as torch writes them: whole or not at all, never executed when read."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colakit.utils.files import replacing, require_unpacked_to_fit


def write_tensors(path: Path, value: Any) -> None:
    """Write tensors and plain data to `path`, whole or not at all, for `torch.load(weights_only=True)`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)  # given a path, torch would write its name into the file
        except RuntimeError as error:  # torch closes its archive over the fault and hides what it was
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise
        file.flush()


def read_tensors(path: Path) -> Any:
    """Return the tensors and plain data of a file that `torch.save` wrote; nothing in the file is executed.

    Raises:
        ValueError: if it would take more memory than the file has bytes.
        Exception: whatever the unpickler stumbles over in a damaged file.
    """
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):  # torch unpacks without a limit, and packs nothing itself
        with zipfile.ZipFile(path) as archive:
            require_unpacked_to_fit(archive.infolist(), path)
    else:  # torch's older format: from a file, a length is believed and room made for it
        source = io.BytesIO(path.read_bytes())
    content = torch.load(source, map_location="cpu", weights_only=True)
    for tensor in _tensors(content):
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("a tensor in it is larger than its data")
    return content


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested plain data, which may hold itself."""
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
