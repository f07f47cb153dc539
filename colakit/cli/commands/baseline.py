"""`colakit baseline`."""

from __future__ import annotations

from typing import Any

from colakit.api.session import Session
from colakit.cli.options import (
    BASE_AND_DATA,
    ResumeOption,
    SeedsOption,
    command,
)
from colakit.storage.output import Resume


@command("baseline", {"--kind": "baseline.kind", **BASE_AND_DATA})
def baseline_command(
    session: Session, *, seeds: SeedsOption = None, resume: ResumeOption = Resume.NEVER
) -> dict[str, Any]:
    """Train a baseline: TF-IDF with logistic regression, the majority label, or an embedding bag.

    The base supplies the tokenizer and the first embeddings of --kind bag; the others do not read it.
    """
    from colakit.api.baseline import baseline

    return baseline(session, resume=resume, seeds=seeds)
