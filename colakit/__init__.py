"""colakit: fine-tune GPT-2 with LoRA for sentence classification, distil it into a small RNN, compare.

    from colakit import distill, evaluate, finetune, load, load_settings, train_scratch

docs/api.md has examples.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colakit.api.functions import Run as Run
    from colakit.api.functions import distill as distill
    from colakit.api.functions import evaluate as evaluate
    from colakit.api.functions import finetune as finetune
    from colakit.api.functions import load as load
    from colakit.api.functions import load_settings as load_settings
    from colakit.api.functions import sweep as sweep
    from colakit.api.functions import train_scratch as train_scratch
    from colakit.config.settings import Settings as Settings
    from colakit.errors import ColakitError as ColakitError

__version__ = "0.1.0"
_SOURCES = {"Settings": "colakit.config.settings", "ColakitError": "colakit.errors"}
__all__ = [
    *("Settings", "load_settings", "finetune", "distill", "train_scratch", "sweep", "evaluate", "load"),
    *("Run", "ColakitError"),
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import colakit.cli` stays fast."""
    if name in __all__:
        return getattr(importlib.import_module(_SOURCES.get(name, "colakit.api.functions")), name)
    raise AttributeError(f"module 'colakit' has no attribute {name!r}")
