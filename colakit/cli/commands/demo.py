"""`colakit demo`: the whole pipeline on the base and corpus of the package."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from colakit.api.session import Session
from colakit.cli.options import BASE_AND_DATA, command
from colakit.storage.output import Resume

PROMPT = "The children"


FOLDERS = {"baseline", "finetune", "distill", "train-scratch", "evaluation", "plots"}


@command("demo", dict(BASE_AND_DATA), config="demo", defaults={"base": "builtin", "data.path": "builtin"})
def demo_command(session: Session) -> dict[str, Any]:
    """Run the whole pipeline on the base and corpus of the package; takes minutes, needs no network.

    A demo that was stopped continues with --out: finished runs are kept.
    """
    from colakit.api.baseline import baseline
    from colakit.api.demo import plan_demo, print_demo_result
    from colakit.api.distill import distill
    from colakit.api.evaluate import evaluate
    from colakit.api.finetune import finetune
    from colakit.api.plot import plot
    from colakit.api.run_set import continue_with
    from colakit.api.train_scratch import train_scratch
    from colakit.cli.commands.generate import generate

    start = time.monotonic()
    if session.dry_run:
        return plan_demo(session)
    out = _demo_folder(session)
    runs = [out / name for name in ("finetune", "distill", "train-scratch", "baseline")]

    def progress() -> str:
        return f"{sum((run / 'summary.json').is_file() for run in runs)} of {len(runs)} runs are finished"

    def step(
        name: str,
        function: Callable[[Session], dict[str, Any]],
        folder: str,
        *,
        unread: Collection[str] = (),
        **changes: Any,
    ) -> Any:
        session.reporter.heading(f"colakit {name}{' --prompt ' + repr(PROMPT) if name == 'generate' else ''}")
        origins = {key: origin for key, origin in session.resolved.origins.items() if key not in unread}
        settings = session.settings.model_copy(update=changes)
        resolved = replace(session.resolved, settings=settings, origins=origins)
        return function(replace(session, command=name, resolved=resolved, out=out / folder))

    short = session.settings.generate.model_copy(update={"max_new_tokens": 20})
    with_teacher = session.settings.distill.model_copy(update={"teacher": (str(runs[0]),)})
    with continue_with(f"colakit demo --out {shlex.quote(str(out))}", progress):
        step("generate", lambda s: generate(s, prompt=PROMPT), "generate", generate=short)
        step("finetune", lambda s: finetune(s, resume=Resume.AUTO), "finetune")
        step("distill", lambda s: distill(s, resume=Resume.AUTO), "distill", distill=with_teacher)
        # --base is the teacher's: the control refuses one that is given and not read
        unread = () if session.settings.student.base is None else ("base",)
        step("train-scratch", lambda s: train_scratch(s, resume=Resume.AUTO), "train-scratch", unread=unread)
        step("baseline", lambda s: baseline(s, resume=Resume.AUTO), "baseline")
        comparison = step("evaluate", lambda s: evaluate(s, models=[str(run) for run in runs]), "evaluation")
        figures = step("plot", lambda s: plot(s, runs=runs), "plots")
    seconds = time.monotonic() - start
    session.reporter.heading("colakit demo")
    print_demo_result(runs, comparison, session.reporter)
    session.reporter.result(f"figure: {figures['figures'][-1]}")
    session.reporter.result(f"all results are in {out} ({seconds:.0f} s)")
    next_command = f"colakit predict --model {shlex.quote(str(runs[1]))}"
    session.reporter.result(f'next: echo "The cat sleep." | {next_command}')
    return {"run": str(out), "seconds": round(seconds, 1), **figures, "evaluation": comparison}


def _demo_folder(session: Session) -> Path:
    """Return the folder of a new demo, or of the one that `session.out` holds."""
    from colakit.storage.output import claim_run_folder
    from colakit.training.run import check_new_run

    out = session.out
    names = {entry.name for entry in out.iterdir()} if out is not None and out.is_dir() else set()
    if not names or not names <= FOLDERS:
        check_new_run(out, hint="Choose another folder, or that of an earlier demo.")
    return claim_run_folder(session.command, out)
