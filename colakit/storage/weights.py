"""Files of named tensors that somebody else wrote: safetensors, and torch's older format."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from colakit.errors import ColakitError, first_line
from colakit.storage.tensor_files import read_tensors


def read_weights_file(path: Path, *, hint: str) -> dict[str, Tensor]:
    """Return the tensors of one file, in fp32; nothing in it is executed.

    Args:
        hint: what to do about a broken file.

    Raises:
        ColakitError: if it is missing or broken, or holds anything but named tensors of real numbers.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
        if not isinstance(content, dict) or not all(map(_is_named_tensor, content.items())):
            raise ValueError("it holds something else than named tensors of real numbers")
        return {name: tensor.float() for name, tensor in content.items()}
    except Exception as error:  # both libraries pass on whatever a damaged file makes them stumble over
        raise ColakitError(f"{path}: cannot be read ({first_line(error)})", hint=hint) from error


def _is_named_tensor(item: tuple[object, object]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor) and not tensor.is_complex()
