"""Settings that are paths: absolute in a run folder, plain names in a model file, which may be shared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

PATHS = (
    *("base", "cache", "data.path", "data.splits", "distill.teacher", "evaluate.annotations"),
    *("pretrain.text", "pretrain.init_from", "pretrain.tokenizer"),
    *("transfer.text", "transfer.language_model", "transfer.select_for", "student.base", "student.init_from"),
)
BUILTIN = (
    "builtin",
    "builtin:",
    "smollm2",
)  # names of bases and the built-in corpus, also where a folder has this name
HUB_CACHE = re.compile(r"/models--([^/]+)/snapshots/")  # in the path of a model that the hub's client fetched
M = TypeVar("M", bound=BaseModel)


def map_paths(settings: M, convert: Callable[[str], str]) -> M:
    """Return the settings with `convert` applied to every path."""
    tree = settings.model_dump()
    for key in PATHS:
        section, _, name = key.rpartition(".")
        holder = tree[section] if section else tree
        holder[name] = _map_value(holder[name], convert)
    return type(settings).model_validate(tree)


def _map_value(value: Any, convert: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: convert(path) for name, path in value.items()}
    if isinstance(value, tuple):
        return tuple(map(convert, value))
    return value and convert(value)


def absolute_path(value: str) -> str:
    """Return the absolute path of an existing file or folder; other values, such as a hub name, unchanged."""
    prefix, path, split = _parts(value)
    return f"{prefix}{path.resolve()}{split}" if value not in BUILTIN and path.exists() else value


def portable_name(value: str) -> str:
    """Return the name of a file or folder without its parents, or its hub name if the hub's cache holds it.

    Other values, such as a hub name, are returned unchanged.
    """
    prefix, path, split = _parts(value)
    if value in BUILTIN or not (path.exists() or str(path).startswith((".", "/"))):
        return value
    path = path.resolve()
    in_cache = HUB_CACHE.search(f"{path.as_posix()}/")
    return in_cache[1].replace("--", "/") if in_cache else f"{prefix}{path.name}{split}" or value


def _parts(value: str) -> tuple[str, Path, str]:
    """Return `hf:` or nothing, the path after it, and the split after that."""
    prefix, split = "", ""
    if value.startswith("hf:"):
        prefix, (value, colon, split) = "hf:", value[3:].partition(":")
        split = colon + split
    return prefix, Path(value).expanduser(), split
