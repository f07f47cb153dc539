"""`colakit demo`: the whole pipeline on the base and corpus of the package."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command

PROMPT = "The children"


@command("demo", dict(BASE_AND_DATA), config="demo")
def demo_command(session: Session) -> dict[str, Any]:
    """Run the whole pipeline on the base and corpus of the package; takes minutes, needs no network."""
    from colakit.api.distill import distill
    from colakit.api.evaluate import evaluate
    from colakit.api.finetune import finetune
    from colakit.api.plot import plot
    from colakit.api.train_scratch import train_scratch
    from colakit.cli.commands.generate import generate
    from colakit.storage.output import claim_run_folder
    from colakit.training.run import check_new_run

    start = time.monotonic()
    if session.dry_run:
        return finetune(session)
    check_new_run(session.out, hint="Choose another folder; a demo cannot be resumed.")
    out = claim_run_folder(session.command, session.out)
    runs = [out / name for name in ("finetune", "distill", "train-scratch")]

    def step(name: str, function: Callable[[Session], dict[str, Any]], folder: str, **changes: Any) -> Any:
        session.reporter.heading(f"colakit {name}")
        resolved = replace(session.resolved, settings=session.settings.model_copy(update=changes))
        return function(replace(session, command=name, resolved=resolved, out=out / folder))

    short = session.settings.generate.model_copy(update={"max_new_tokens": 20})
    step("generate", lambda s: generate(s, prompt=PROMPT), "generate", generate=short)
    step("finetune", finetune, "finetune")
    with_teacher = session.settings.distill.model_copy(update={"teacher": (str(runs[0]),)})
    step("distill", distill, "distill", distill=with_teacher)
    step("train-scratch", train_scratch, "train-scratch")
    comparison = step("evaluate", lambda s: evaluate(s, models=[str(run) for run in runs]), "evaluation")
    figures = step("plot", lambda s: plot(s, runs=runs), "plots")
    seconds = time.monotonic() - start
    session.reporter.result(f"all results are in {out} ({seconds:.0f} s)")
    return {"run": str(out), "seconds": round(seconds, 1), **figures, "evaluation": comparison}
