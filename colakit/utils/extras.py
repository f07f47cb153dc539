"""Import of packages that an extra of colakit installs."""

from __future__ import annotations

import importlib
from typing import Any

from colakit.errors import ColakitError


def import_extra(module: str, extra: str) -> Any:
    """Return a module of an optional package.

    Raises:
        ColakitError: if it is not installed; names the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ColakitError(
            f"the package {module.partition('.')[0]} is not installed ({error})",
            hint=f"Install it with: pip install 'colakit[{extra}]'",
        ) from error
