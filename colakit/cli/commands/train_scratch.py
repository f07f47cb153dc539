"""`colakit train-scratch`."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, STUDENT_FLAGS, ResumeOption, command
from colakit.storage.output import Resume


@command("train-scratch", {**STUDENT_FLAGS, **BASE_AND_DATA})
def train_scratch_command(session: Session, *, resume: ResumeOption = Resume.NEVER) -> dict[str, Any]:
    """Train the same student on the labels alone: the control for `distill`."""
    from colakit.api.train_scratch import train_scratch

    return train_scratch(session, resume=resume)
