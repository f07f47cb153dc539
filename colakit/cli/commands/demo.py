"""`colakit demo`: every command in turn on the embedded base and corpus."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from colakit.api import distill, finetune, train_scratch
from colakit.api.evaluate import evaluate
from colakit.api.session import Resume, Session
from colakit.cli.commands import generate, plot

PROMPT = "The children"


def run(session: Session) -> dict[str, Any]:
    """Generate, tune, distil, train the control, compare and plot, all below one folder."""
    began = time.monotonic()
    if session.dry_run:
        return finetune.run(session, resume=Resume.NEVER)
    session.check_new_run(hint="Name another folder; a demo begins at its beginning.")
    out = session.claim_run_folder()
    runs = [out / name for name in ("finetune", "distill", "train-scratch")]

    def step(command: str, act: Callable[[Session], dict[str, Any]], folder: str, **changes: Any) -> Any:
        session.reporter.heading(f"colakit {command}")
        settings = session.settings.model_copy(update=changes)
        resolved = replace(session.resolved, settings=settings)
        return act(replace(session, command=command, resolved=resolved, out=out / folder))

    generating = session.settings.generate.model_copy(update={"max_new_tokens": 20})
    step(
        "generate",
        lambda c: generate.run(c, prompt=PROMPT, adapter=None, rank=None),
        "generate",
        generate=generating,
    )
    step("finetune", lambda c: finetune.run(c, resume=Resume.NEVER), "finetune")
    taught = session.settings.distill.model_copy(update={"teacher": (str(runs[0]),)})
    step("distill", lambda c: distill.run(c, resume=Resume.NEVER), "distill", distill=taught)
    step("train-scratch", lambda c: train_scratch.run(c, resume=Resume.NEVER), "train-scratch")
    compared = step("evaluate", lambda c: evaluate(c, models=[str(run) for run in runs]), "evaluation")
    figures = step("plot", lambda c: plot.run(c, runs=runs), "plots")
    seconds = time.monotonic() - began
    session.reporter.result(f"everything lies in {out} ({seconds:.0f} s)")
    return {"run": str(out), "seconds": round(seconds, 1), **figures, "evaluation": compared}
