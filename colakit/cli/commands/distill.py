"""`colakit distill`."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.cli.options import (
    BASE_AND_DATA,
    STUDENT_FLAGS,
    ResumeOption,
    SeedsOption,
    command,
)
from colakit.storage.output import Resume


@command(
    "distill",
    {
        "--teacher": "distill.teacher",
        "--transfer-size": "transfer.size",
        "--transfer-text": "transfer.text",
        "--temperature": "distill.temperature",
        "--kd-weight": "distill.kd_weight",
        **STUDENT_FLAGS,
        **BASE_AND_DATA,
        "--track": "track",
    },
)
def distill_command(
    session: Session, *, seeds: SeedsOption = None, resume: ResumeOption = Resume.NEVER
) -> dict[str, Any]:
    """Train a small recurrent student on the outputs of one or several teachers.

    With --seeds, one teacher serves all seeds; a folder that `finetune --seeds` wrote gives each student the
    teacher of its seed.
    """
    from colakit.api.distill import distill

    return distill(session, resume=resume, seeds=seeds)
