"""The values of `--resume`; in a module of its own because the command line must not import torch."""

from __future__ import annotations

from enum import Enum


class Resume(str, Enum):
    """Whether a training command continues the run in `--out`."""

    NEVER = "never"
    ALWAYS = "always"
    AUTO = "auto"
