"""The functions of `import colakit`: the same code as the commands, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from colakit.api.session import Session
from colakit.config.resolve import Resolved, resolve
from colakit.config.settings import Settings
from colakit.errors import ColakitError
from colakit.storage.output import Resume
from colakit.utils.console import Reporter

if TYPE_CHECKING:
    from colakit.inference.baseline import BaselineClassifier
    from colakit.inference.numpy_predictor import StudentPredictor
    from colakit.inference.onnx_predictor import OnnxPredictor
    from colakit.inference.predictor import Predictor


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        path: its folder, as `evaluate`, `distill` and `load` take it.
        summary: content of its summary.json.
    """

    path: Path
    summary: dict[str, Any]


def load_settings(config: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a YAML file (default: none) with changes by dotted key, such as `lora.rank`.

    `COLAKIT_` variables of the environment apply as on the command line.

    Raises:
        ColakitError: listing every invalid key and value.
    """
    flags = {key: ("load_settings", value) for key, value in (changes or {}).items()}
    path = None if config is None else Path(config)
    return resolve(flags=flags, config=path).settings


def finetune(
    settings: Settings,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    folds: int | None = None,
    seeds: Sequence[int] | None = None,
    quiet: bool = False,
) -> Run:
    """Fine-tune a base model with LoRA, or all of its weights (`finetune.method`).

    Args:
        out: run folder; by default the next free `runs/finetune-NNN`.
        resume: continue the run in `out` if there is one.
        folds: train this many models, each without one fold of train; the run is usable as a teacher.
        seeds: train one model for each seed, side by side; the summary has mean and deviation.
        quiet: print warnings only.

    Raises:
        ColakitError: for invalid settings or data, and if training fails.
    """
    from colakit.api.finetune import finetune as run

    return _train(run, "finetune", settings, out, resume, quiet, num_folds=folds, seeds=seeds)


def distill(
    settings: Settings,
    teacher: Run | str | Path | Sequence[Run | str | Path],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    seeds: Sequence[int] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a recurrent student on the outputs of one or several teachers; arguments as in `finetune`.

    With `seeds`, a teacher that has seeds as well gives each student the teacher of its seed.
    """
    from colakit.api.distill import distill as run

    teachers = teacher if isinstance(teacher, Sequence) and not isinstance(teacher, str) else [teacher]
    section = settings.distill.model_copy(update={"teacher": tuple(map(_path, teachers))})
    settings = settings.model_copy(update={"distill": section})
    return _train(run, "distill", settings, out, resume, quiet, seeds=seeds)


def train_scratch(
    settings: Settings | None = None,
    *,
    like: Run | str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    seeds: Sequence[int] | None = None,
    quiet: bool = False,
) -> Run:
    """Train the same student without a teacher: the control for `distill`; arguments as in `finetune`.

    Args:
        settings: not with `like`.
        like: a run of `distill`, whose data, base, student, steps and seed are taken.
    """
    from colakit.api.train_scratch import train_scratch as run

    if (settings is None) == (like is None):
        raise ColakitError("train_scratch: takes either settings or `like`")
    path = None if like is None else Path(_path(like))
    settings = settings or load_settings(path / "settings.yaml")  # type: ignore[operator]
    return _train(run, "train-scratch", settings, out, resume, quiet, like=path, seeds=seeds)


def sweep(
    settings: Settings,
    command: str,
    *,
    out: str | Path,
    storage: str | None = None,
    quiet: bool = False,
) -> Run:
    """Search for settings in `settings.sweep.space` by many trainings, and evaluate the best on dev.

    The same call continues a sweep that was stopped.

    Args:
        command: that trains a trial: `finetune`, `distill` or `train-scratch`.
        out: folder of the sweep; its `winner.yaml` has the best settings.
        storage: URL of a database, or path of an Optuna journal, that several machines share.

    Raises:
        ColakitError: if the search space is not valid, or trials fail.
    """
    from colakit.api.sweep import sweep as run

    summary = run(_session("sweep", settings, out, quiet), command=command, storage=storage)
    return Run(Path(summary["run"]), summary)


def evaluate(
    models: Sequence[Run | str | Path],
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare models on labelled splits; return the content of evaluation.json.

    Args:
        models: runs, run folders, `ckpt.pt` files or adapter folders.
        settings: data and splits; by default the data that the models were trained on.
        out: folder for evaluation.json, evaluation.md and figures.

    Raises:
        ColakitError: if a model or the data cannot be read.
    """
    from colakit.api.evaluate import evaluate as run

    return run(_session("evaluate", settings or Settings(), out, quiet), models=list(map(_path, models)))


def load(
    model: Run | str | Path,
) -> Predictor | StudentPredictor | BaselineClassifier | OnnxPredictor:
    """Return a callable that labels sentences: `load(run)("The cat sleep.").names`.

    A baseline is loaded without torch, and a student if its run folder has `student.safetensors`. ONNX files
    and folders of `colakit export` that have one run in ONNX Runtime.

    Raises:
        ColakitError: if there is no model, or it is damaged.
    """
    from colakit.inference.without_torch import load_without_torch

    path = _path(model)
    if (predictor := load_without_torch(path)) is not None:
        return predictor
    from colakit.inference.classifier import load_classifier
    from colakit.inference.predictor import Predictor
    from colakit.runtime.device import resolve_compute

    return Predictor(load_classifier(path), resolve_compute("auto", "auto"))


def _path(model: Run | str | Path) -> str:
    return str(model.path if isinstance(model, Run) else model)


def _session(command: str, settings: Settings, out: str | Path | None, quiet: bool) -> Session:
    resolved = Resolved(settings, dict.fromkeys(_keys_set(settings), "Settings"))
    folder = None if out is None else Path(out)
    return Session(command, resolved, Reporter(quiet=quiet, results_on_stderr=quiet), folder)


def _keys_set(model: BaseModel, prefix: str = "") -> list[str]:
    """Return the dotted keys of the settings that are set."""
    keys = []
    for name in model.model_fields_set:
        value = getattr(model, name)
        keys += _keys_set(value, f"{name}.") if isinstance(value, BaseModel) else [prefix + name]
    return keys


def _train(
    run: Any,
    command: str,
    settings: Settings,
    out: str | Path | None,
    resume: bool,
    quiet: bool,
    **arguments: Any,
) -> Run:
    session = _session(command, settings, out, quiet)
    summary = run(session, resume=Resume.AUTO if resume else Resume.NEVER, **arguments)
    return Run(Path(summary["run"]), summary)
