"""Building a model whose weights come from a file, or never."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_}


class _NoDraws(TorchFunctionMode):
    """Leaves out what would fill a tensor that has no memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the meta device inside: shapes without memory.

    Drawing initial values is left out. On that device it would do nothing, yet torch imports its compiler for
    it, two seconds of a `predict` that takes one.
    """
    with torch.device("meta"), _NoDraws():
        yield
