"""Tensor files: torch archives of tensors and plain data, and safetensors."""

from __future__ import annotations

import io
import itertools
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from colakit.errors import ColakitError
from colakit.storage.safetensors_header import read_header
from colakit.utils.documents import check_plain, library_errors
from colakit.utils.files import replacing, require_unpacked_to_fit

MAX_OPERATIONS = 2**18  # of a pickle: a second's work
MAX_VALUES = 2**18
NUM_PICKLES = 5  # in torch's format before 1.6, which is no archive
ALLOWED_GLOBALS = re.compile(  # torch allows more, such as a bytearray of any size
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)


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


def read_tensors(path: Path, *, hint: str | None = None) -> Any:
    """Return the tensors and plain data of a `torch.save` file; no code in the file is executed.

    Raises:
        DocumentError: if it is damaged, contains anything else, or needs more memory than it has bytes.
    """
    with library_errors(path, hint=hint):
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        source: Path | io.BytesIO = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_pickle_of(archive, path)) as pickle:
                _check_operations(pickle, 1)
        else:  # torch's legacy format: a file's declared length would be allocated unchecked
            source = io.BytesIO(path.read_bytes())
            _check_operations(source, NUM_PICKLES)
            source.seek(0)
        content = torch.load(source, map_location="cpu", weights_only=True)
        for tensor in check_plain(content, max_items=MAX_VALUES, leaves=Tensor):
            if math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError("a tensor is larger than its data")
    return content


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the name of the archive's pickle; refuse archives that torch may read in another way."""
    members = archive.infolist()
    require_unpacked_to_fit(members, path)  # torch stores uncompressed but decompresses without a limit
    names = [member.filename.lower() for member in members]  # torch ignores case
    pickles = [member.filename for member in members if member.filename.lower().endswith("/data.pkl")]
    if len(set(names)) < len(names) or len(pickles) != 1 or min(m.header_offset for m in members):
        raise ValueError("not an archive of torch.save")
    return pickles[0]


def _check_operations(file: IO[bytes], num_pickles: int) -> None:
    """Raise `ValueError` if unpickling takes too many operations, or needs other types than tensors' own."""
    operations = itertools.chain.from_iterable(pickletools.genops(file) for _ in range(num_pickles))
    for count, (operation, argument, _) in enumerate(operations):
        if count > MAX_OPERATIONS:
            raise ValueError(f"has more than {MAX_OPERATIONS:,} values and operations")
        foreign = operation.name == "GLOBAL" and not ALLOWED_GLOBALS.fullmatch(str(argument))
        if foreign or operation.name in ("STACK_GLOBAL", "INST", "OBJ"):
            raise ValueError("it must contain only tensors and plain data")


def read_weights_file(path: Path, *, hint: str) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors or torch file, in fp32; no code in the file is executed.

    Args:
        hint: repair advice for a broken file.

    Raises:
        DocumentError: if the file is missing or broken, or contains anything but named real tensors.
    """
    with library_errors(path, hint=hint):
        if path.suffix == ".safetensors":
            read_header(path)
            content = load_file(path)
        else:
            content = read_tensors(path, hint=hint)
        return {name: tensor.float() for name, tensor in named_tensors(content).items()}


def named_tensors(content: Any) -> dict[str, Tensor]:
    """Return `content`, or raise `ValueError` if it is no mapping from names to tensors."""
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError("it must contain only named tensors of real numbers")
    return content


def require_finite(model: nn.Module, path: Path) -> None:
    """Raise `ColakitError` if a weight of the model at `path` is infinite or NaN."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ColakitError(
                f"{path}: the weight {name} has values that are infinite or NaN",
                hint="Train or copy the model again.",
            )
