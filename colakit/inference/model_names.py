"""Short names of models in tables and figures, from their paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colakit.storage.model_file import CHECKPOINT_NAME


def run_folder(model: str | Path) -> Path:
    """Return the folder of a model that is given as `RUN` or as `RUN/ckpt.pt`; any other path unchanged."""
    path = Path(model)
    return path.parent if path.name == CHECKPOINT_NAME and path.parent.name else path


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest trailing parts of `paths` that differ from each other."""
    absolute = [path.absolute().parts for path in paths]
    longest = max((len(parts) for parts in absolute), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(parts[-depth:]) for parts in absolute]
        if len(set(names)) == len(set(absolute)):
            return names
    return [str(path) for path in paths]
