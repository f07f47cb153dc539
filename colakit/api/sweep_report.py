"""The report of a sweep: table of trials, figures, the winner's settings and its figures on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colakit.api.evaluate import evaluate
from colakit.api.session import Session
from colakit.config.paths import absolute_path, map_paths
from colakit.config.resolve import Resolved, changed
from colakit.config.sweep import SweepSettings
from colakit.config.yaml import to_yaml
from colakit.errors import EXIT_FAILED, ColakitError
from colakit.evaluation.tables import print_tables
from colakit.reports.figures.style import save_figure
from colakit.reports.figures.sweeps import draw_importance, draw_parallel, draw_slices
from colakit.storage.run_schemas import Summary
from colakit.sweeps.results import TrialResult, as_dict, results_of, trials_table, winner_of
from colakit.sweeps.runner import SweepRunner, as_values
from colakit.utils.documents import read_document
from colakit.utils.files import write_json, write_text


def report_sweep(session: Session, trial: Session, runner: SweepRunner, objective: str) -> dict[str, Any]:
    """Write winner.yaml, the figures and summary.json of a finished sweep; print and return the summary.

    Args:
        trial: session of a trial, which has loaded the data.
        objective: name of the maximised figure.

    Raises:
        ColakitError: if no trial is complete.
    """
    out, study, reporter = runner.folder, runner.study, session.reporter
    results = results_of(study)
    winner = winner_of(results)
    if winner is None:
        raise ColakitError(
            f"{out}: no trial is complete; the first: {results[0].error}", exit_code=EXIT_FAILED
        )
    importance = study.importance()
    tables = [trials_table(results, objective)]
    if importance:
        rows = [[key, f"{100 * value:.0f}"] for key, value in importance.items()]
        tables.append(("importance of settings (fANOVA)", ["setting", "% of the variance"], rows))
    print_tables(tables, reporter)
    write_text(out / "winner.yaml", _winner_yaml(session, winner))
    _draw(session, results, importance, [each.key for each in study.space if each.log], out, objective)
    complete = sum(each.state == "complete" for each in results)
    note = (
        f"trial {winner.index} is the best of {len(results)} trials ({complete} complete): {objective} "
        f"{winner.value:.3f}, which is optimistic, as the maximum of {complete} noisy figures is"
    )
    reporter.result(note)
    dev = _read_dev(session, trial, runner, winner)
    summary = {
        "command": "sweep",
        "trained": runner.command.command,
        "objective": objective,
        **study.settings.model_dump(mode="json", include={"sampler", "pruner", "jobs", "seeds", "folds"}),
        "space": {each.key: each.describe() for each in study.space},
        "best_of": len(results),
        "num_complete": complete,
        "note": note,
        "winner": {**as_dict(winner), "dev": dev},
        "importance": importance,
        "trials": [as_dict(each) for each in results],
    }
    write_json(out / "summary.json", summary)
    reporter.result(f"{out / 'winner.yaml'}: settings of the winner, for --config")
    return summary


def _winner_yaml(session: Session, winner: TrialResult) -> str:
    """Return all settings of the winner as YAML, without the sweep."""
    settings = map_paths(session.settings, absolute_path).model_copy(update={"sweep": SweepSettings()})
    return to_yaml(changed(settings, f"trial {winner.index}", as_values(winner.params)))


def _read_dev(
    session: Session, trial: Session, runner: SweepRunner, winner: TrialResult
) -> dict[str, Any] | None:
    """Return the evaluation of the winner's runs on dev; None without dev, or if the runs are elsewhere.

    A sweep that is continued with more trials, or reported again, and has the same winner does not read dev
    again.
    """
    folder, summary = runner.trial_folder(winner.index), runner.folder / "summary.json"
    if summary.is_file():
        before = read_document(summary, Summary).model_dump()["winner"]
        if before["index"] == winner.index and before["dev"] is not None:
            return before["dev"]
    if trial.load_corpus().report_splits() == ["train"]:
        return None
    if not (folder / "summary.json").is_file():
        session.reporter.warn(
            f"the winner's runs are not here but on {winner.host}, in {winner.folder}: run the command there "
            "to read dev"
        )
        return None
    session.reporter.heading(f"dev, read once, for trial {winner.index} alone")
    own = replace(session, command="evaluate", resolved=Resolved(session.settings))
    own.out = runner.folder / "winner"
    splits = evaluate(own, [str(folder)])["splits"]
    return {name: {key: split[key] for key in ("models", "groups")} for name, split in splits.items()}


def _draw(
    session: Session,
    results: Sequence[TrialResult],
    importance: Mapping[str, float],
    log_keys: Sequence[str],
    out: Path,
    objective: str,
) -> None:
    """Write the figures to `plots/`."""
    plot = session.settings.plot
    trials = [each for each in results if each.value is not None]
    figures = {
        "slices": draw_slices(trials, log_keys, objective),
        "parallel": draw_parallel(trials, log_keys, objective),
    }
    if importance:
        figures["importance"] = draw_importance(importance)
    (out / "plots").mkdir(exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, out / "plots" / f"{name}.{plot.format}", dpi=plot.dpi)
