"""`report`: a typeset account of finished runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colakit.api.evaluate import measure_models
from colakit.api.plot import compare_runs, read_runs
from colakit.api.recorded_data import load_corpus_of
from colakit.api.session import Session
from colakit.config.resolve import resolve
from colakit.config.settings import Settings, leaf_fields
from colakit.errors import ColakitError
from colakit.evaluation.experiments import SECTIONS
from colakit.inference.model_names import run_folder
from colakit.reports.content import ReportedRun, make_document
from colakit.reports.document import Block, Picture
from colakit.reports.figures.curves import RunData
from colakit.reports.method import describe_baseline, describe_finetuning, describe_student
from colakit.reports.pairs import describe_pairs
from colakit.reports.sweep import describe_sweep
from colakit.reports.writers import FORMATS, TABLE_FORMATS, write_report, write_tables
from colakit.storage.run_folder import RunFolder
from colakit.storage.run_set import expand_runs

DEFAULT_OUT = Path("report.pdf")
SHARED = ("base", "start_token", "seed")  # settings beside those of a command's sections
FILES = ("distill.teacher", "data.path", "data.splits")  # of one machine


def report(
    session: Session,
    *,
    runs: Sequence[str],
    sweep: Path | None = None,
    pairs: Path | None = None,
    tables: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure finished runs and write a report; its figures are those of `evaluate`.

    Args:
        runs: run folders, or folders of seeds or folds.
        sweep: folder of a finished sweep, to be described too.
        pairs: folder that `evaluate --pairs` wrote, likewise.
        tables: formats of `TABLE_FORMATS`: write the tables alone, into a folder.

    Raises:
        ColakitError: if a run is not finished, or the runs have different labels or data.
    """
    out = session.out or (Path("tables") if tables else DEFAULT_OUT)
    if unknown := [each for each in tables if each not in TABLE_FORMATS]:
        raise ColakitError(f"--tables {unknown[0]}: unknown", hint=f"Choose from {', '.join(TABLE_FORMATS)}.")
    if not tables and out.suffix.removeprefix(".") not in FORMATS:
        raise ColakitError(
            f"--out {out}: is no format of a report", hint=f"End it in one of: .{', .'.join(FORMATS)}"
        )
    folders = [RunFolder(Path(path)) for path in expand_runs(map(str, map(run_folder, runs)), nested=True)]
    data = read_runs(folders, session.reporter)
    reported = [_reported_run(*run) for run in zip(folders, data, strict=True)]
    models = [str(folder.path) for folder in folders]
    extra = [] if pairs is None else [*describe_pairs(pairs)]
    extra += [] if sweep is None else [*describe_sweep(sweep)]
    corpus = load_corpus_of(session, models)
    if session.dry_run:
        session.reporter.result(f"would write {out} about {len(models)} runs on {corpus.name}")
        return {"report": str(out), "runs": models}
    evaluation = measure_models(session, models, corpus)
    for text in evaluation.unequal:
        session.reporter.warn(text)
    comparison = None
    if len(data) > 1:
        caption = "All experiments: mean over runs and 95 % interval over sentences"
        comparison = Picture("comparison", caption, compare_runs(folders, data))
    document = make_document(evaluation, reported, comparison, extra)
    for sentence in document.summary:
        session.reporter.result(sentence)
    try:
        if tables:
            written = [str(path) for path in write_tables(document, out, tables)]
        else:
            write_report(document, out)
            written = [str(out)]
    except OSError as error:
        raise ColakitError(f"{out}: {error.strerror}", hint="Choose another path with --out.") from error
    session.reporter.result(f"wrote {', '.join(written)}")
    return {"report": written, "summary": document.summary, "evaluation": evaluation.as_dict()}


def _reported_run(folder: RunFolder, data: RunData) -> ReportedRun:
    """Return a run with its method and settings.

    Raises:
        ColakitError: if settings.yaml or environment.json is missing or broken.
    """
    settings = resolve(config=folder.settings, environment={}).settings
    environment = folder.read_environment()
    return ReportedRun(
        data,
        environment,
        [*_method(data.summary, settings)],
        [*_changed_settings(str(data.summary["command"]), settings, environment.origins)],
        (settings.data.val_fraction, settings.data.val_seed),
        settings.finetune.track_dev or settings.student_training.track_dev,
    )


def _method(summary: Mapping[str, Any], settings: Settings) -> Iterator[Block]:
    match summary["command"]:
        case "finetune":
            base = Path(str(summary.get("base") or settings.base)).name
            return describe_finetuning(base, settings.lora, settings.finetune)
        case "baseline":
            return describe_baseline(settings.baseline)
    distill = settings.distill if summary["command"] == "distill" else None
    return describe_student(settings.student, settings.student_training, distill, settings.transfer)


def _changed_settings(
    command: str, settings: Settings, origins: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and origin of the settings that a command reads and that are not the defaults."""
    values = settings.model_dump(mode="json")
    for key, field in leaf_fields():
        section, _, name = key.rpartition(".")
        value = values[section][name] if section else values[name]
        default = field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        is_read = section in SECTIONS.get(command, ()) or key in SHARED
        if is_read and value != default and key not in FILES:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield key, text, origins.get(key, "settings.yaml of the run")
