"""`colakit plot`: figures from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colakit.context import Context
from colakit.engine.comparison import experiment_key
from colakit.engine.runs import RunFolder
from colakit.errors import ColakitError
from colakit.loading import read_yaml
from colakit.plotting import RunData, draw_comparison, draw_curves, draw_overlay, save_figure

COMPARISONS = Path("plots")  # where figures of several runs go, unless `--out` names another folder


def run(context: Context, *, runs: list[Path]) -> dict[str, Any]:
    """Draw each run's curves into the run's own `plots/`, and what compares several into `--out`."""
    found = [_read(path) for path in runs]
    form, dpi = context.settings.plot.format, context.settings.plot.dpi
    figures = {
        RunFolder(path).plots / f"curves.{form}": draw_curves(data)
        for path, data in zip(runs, found, strict=True)
    }
    if len(found) > 1:
        folder = context.out or COMPARISONS
        figures[folder / f"overlay.{form}"] = draw_overlay(found)
        figures[folder / f"comparison.{form}"] = draw_comparison(found)
    for path, figure in figures.items():
        if not context.dry_run:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_figure(figure, path, dpi=dpi)
            except OSError as error:
                raise ColakitError(f"{path}: {error.strerror}", hint="Choose a folder with --out.") from error
        context.reporter.result(f"{'would write' if context.dry_run else 'wrote'} {path}")
    return {"figures": [str(path) for path in figures]}


def _read(path: Path) -> RunData:
    run = RunFolder(path)
    summary = run.read_summary()
    evaluations = [record for record in run.read_metrics() if record.get("event") == "evaluation"]
    if not evaluations:
        raise ColakitError(
            f"{path}: metrics.jsonl holds no evaluation", hint="Give the folder of a training run."
        )
    settings = read_yaml(run.settings)
    origin = {"command": summary["command"], "base": summary.get("base"), "settings": settings}
    cell = settings.get("student", {}).get("cell")
    label = summary["command"] if summary["command"] == "finetune" else f"{summary['command']} ({cell})"
    return RunData(path.resolve().name, label, experiment_key(origin), evaluations, summary)
