"""`colakit discriminate`."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.cli.options import ResumeOption, command
from colakit.storage.resume import Resume


@command(
    "discriminate",
    {
        "--base": "base",
        "--sentences": "discriminate.sentences",
        "--lr": "discriminate.lr",
        "--batch-size": "discriminate.batch_size",
    },
)
def discriminate_command(session: Session, *, resume: ResumeOption = Resume.NEVER) -> dict[str, Any]:
    """Train a base to tell real sentences from corrupted ones: a second stage of pre-training."""
    from colakit.api.discriminate import discriminate

    return discriminate(session, resume=resume)
